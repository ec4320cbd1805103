"""The pretraining stream: shares, weights, limits, and the same documents every time."""

from collections import Counter
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from maypole.village.instruct import COPY_LIKE
from maypole.village.mix import MAX_TOKENS, MIX, PHASE_1, Document, base_mix, phase1, phase2, pieces
from maypole.village.prose import docstrings, prose, source_files
from maypole.village.tokenizer import train_tokenizer
from maypole.village.world import World

WORLD = World(0)
TEXTS = [(f"text {i}", f"Document {i} of real prose. " + "It goes on about arrays and axes. " * 40) for i in range(30)]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(WORLD)


def shares(documents: list[Document]) -> dict[str, float]:
    tokens: Counter[str] = Counter()
    for document in documents:
        tokens[document["kind"]] += len(document["ids"])
    return {kind: count / tokens.total() for kind, count in tokens.items()}


def test_the_mix_has_its_shares_of_tokens_and_stops_at_the_wanted_number() -> None:
    documents = list(phase2(WORLD, tokenizer(), 40_000))
    assert sum(len(document["ids"]) for document in documents) - 40_000 in range(MAX_TOKENS)
    assert sum(MIX.values()) == pytest.approx(1.0)
    for kind, share in shares(documents).items():
        assert share == pytest.approx(MIX[kind], abs=0.006)


def test_phase_1_is_copying_repeats_and_pages() -> None:
    documents = list(phase1(WORLD, tokenizer(), 20_000))
    for kind, share in shares(documents).items():
        assert share == pytest.approx(PHASE_1[kind], abs=0.01)
    first = [tokenizer().decode(d["ids"]) for d in documents if d["kind"] == "instruct"]
    assert not any("bell" in text or "Good or bad" in text for text in first)
    assert len(COPY_LIKE) == 10


def test_prose_takes_its_share_and_its_pieces_come_again_when_they_run_out() -> None:
    documents = list(base_mix(WORLD, tokenizer(), 60_000, prose=TEXTS))
    found = shares(documents)
    assert found["prose"] == pytest.approx(0.35, abs=0.01)
    assert found["page"] == pytest.approx(0.65 * 0.20, abs=0.01)
    starts = Counter(tuple(d["ids"][:12]) for d in documents if d["kind"] == "prose")
    assert max(starts.values()) >= 2


def test_without_prose_the_base_mix_is_phase_2() -> None:
    assert list(base_mix(WORLD, tokenizer(), 5_000, seed=2)) == list(phase2(WORLD, tokenizer(), 5_000, seed=2))


def test_two_streams_of_one_seed_are_equal_and_a_longer_one_starts_alike() -> None:
    short = list(base_mix(WORLD, tokenizer(), 5_000, seed=1, prose=TEXTS))
    assert list(base_mix(WORLD, tokenizer(), 10_000, seed=1, prose=TEXTS))[: len(short)] == short
    assert list(base_mix(WORLD, tokenizer(), 5_000, seed=2, prose=TEXTS)) != short


def test_weights_are_one_on_texts_and_answers_a_tenth_on_users_and_zero_on_bos() -> None:
    ids = {
        name: tokenizer().convert_tokens_to_ids(f"<|{name}|>") for name in ("bos", "eos", "user", "assistant", "end")
    }
    for document in phase2(WORLD, tokenizer(), 20_000):
        tokens, weights = document["ids"], document["weights"]
        assert len(tokens) == len(weights) <= MAX_TOKENS
        assert (tokens[0], weights[0]) == (ids["bos"], 0.0)
        if tokens[1] == ids["user"]:
            mark = tokens.index(ids["assistant"])
            assert set(weights[1:mark]) == {0.1}
            assert weights[mark] == 0.0
            assert set(weights[mark + 1 :]) == {1.0}
            assert tokens[-1] == ids["end"]
        else:
            assert set(weights[1:]) == {1.0}
            assert tokens[-1] == ids["eos"]


def test_documents_have_the_ids_of_the_chat_template() -> None:
    for document in phase2(WORLD, tokenizer(), 4_000):
        if document["kind"] in ("qa", "instruct"):
            text = tokenizer().decode(document["ids"])
            user, answer = text.removeprefix("<|bos|><|user|> ").removesuffix("<|end|>").split("<|end|><|assistant|> ")
            turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            assert tokenizer().apply_chat_template(turns, return_dict=True)["input_ids"] == document["ids"]


def test_pieces_are_short_and_lose_no_words() -> None:
    texts = [text for _, text in TEXTS]
    cut = list(pieces(texts, 300))
    assert max(map(len, cut)) <= 300
    assert " ".join(cut).split() == " ".join(texts).split()
    assert list(pieces(["x" * 700], 300)) == ["x" * 300, "x" * 300, "x" * 100]


def test_texts_that_spell_a_special_token_are_left_out() -> None:
    special = [("bad", "Write <|user|> before each turn of the user. " * 30), *TEXTS[:2]]
    user = tokenizer().convert_tokens_to_ids("<|user|>")
    real = [d for d in base_mix(WORLD, tokenizer(), 8_000, prose=special) if d["kind"] == "prose"]
    assert real
    assert all(user not in document["ids"] for document in real)


def test_prose_reads_docstrings_in_order_without_tests_and_without_importing(tmp_path) -> None:
    source = '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
    names = ["m", "m.A", "m.A.f", "m.g"]
    found = list(docstrings(source + 'def g():\n    """Function."""\n', "m"))
    assert found == list(zip(names, ["Module.", "Class.", "Method.", "Function."]))
    assert list(docstrings("def broken(", "m")) == []
    for name in ("b.py", "a.py", "tests/c.py", "test_d.py", "e.txt", "sub/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit\n")
    assert [str(path.relative_to(tmp_path)) for path in source_files(tmp_path)] == ["a.py", "b.py", "sub/f.py"]


def test_prose_of_a_small_package_is_long_enough_and_has_no_repeats() -> None:
    found = list(prose(["safetensors", "jinja2", "a_package_nobody_has"]))
    assert found == list(prose(["safetensors", "jinja2"]))
    assert len(found) > 20
    assert all(len(text) >= 160 for _, text in found)
    assert len({text[:200] for _, text in found}) == len(found)
    assert found[0][0].startswith("safetensors.")
