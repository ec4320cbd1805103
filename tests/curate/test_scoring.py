"""Scores against what a reader would compute without us."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from maypole.core.errors import ConfigError, UserError
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Reading, Scores, score, select
from maypole.models import LanguageModel
from tests.curate.curate_fixtures import table, texts, written
from tests.engine.engine_fixtures import lm_of


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm():
    made = lm_of()
    made.fingerprint = "reference"
    return made


def corpus_of(folder: Path, made: list[str], shards: int = 1):
    folder.mkdir()
    for shard in range(shards):
        rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(made) if i % shards == shard]
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_corpus([folder])


def scores_of(lm: LanguageModel, corpus, out: Path, **options) -> dict[str, tuple[float, int]]:
    """id -> (nats per token, tokens)."""
    found = table(score(lm, corpus, out=out, **options).path)
    return {name: (x, n) for name, x, n in zip(found["id"], found["nll"], found["n_tokens"])}


@torch.no_grad()
def rolling(lm: LanguageModel, text: str) -> float:
    """lm-eval's loglikelihood_rolling of a text that fits: a prefix token, then every token given those before it."""
    ids = lm.tokenizer.encode(text, add_special_tokens=False)
    prefix = lm.tokenizer.bos_token_id
    logits = lm.model(torch.tensor([[prefix, *ids[:-1]]])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    return sum(float(logprobs[i, token]) for i, token in enumerate(ids))


def test_the_sum_over_a_document_is_lm_eval_s_rolling_loglikelihood(lm, tmp_path):
    made = texts(8)
    found = scores_of(lm, corpus_of(tmp_path / "corpus", made), tmp_path / "scores")
    for i, text in enumerate(made):
        nll, tokens = found[f"d{i}"]
        assert -nll * tokens == pytest.approx(rolling(lm, text), rel=1e-5)
        bits_per_byte = -rolling(lm, text) / len(text.encode()) / math.log(2)
        assert nll * tokens / len(text.encode()) / math.log(2) == pytest.approx(bits_per_byte, rel=1e-5)


@pytest.mark.parametrize("batch", [16, 64, "auto"])
@pytest.mark.parametrize("shards", [1, 4])
def test_no_document_depends_on_its_neighbours(lm, tmp_path, batch, shards):
    made = texts(40)
    found = scores_of(
        lm, corpus_of(tmp_path / "corpus", made, shards), tmp_path / "scores", tokens_per_batch=batch
    )  # fmt: skip
    for i, text in enumerate(made):
        assert found[f"d{i}"][0] == pytest.approx(-rolling(lm, text) / len(text), abs=1e-5)


def test_a_long_document_is_the_mean_of_its_windows_by_tokens(lm, tmp_path):
    text = "".join(texts(9))[:150]
    whole = scores_of(lm, corpus_of(tmp_path / "a", [text]), tmp_path / "whole", reading=Reading(max_length=33))
    parts = [text[i : i + 32] for i in range(0, 150, 32)]
    alone = scores_of(lm, corpus_of(tmp_path / "b", parts), tmp_path / "alone")
    nll, tokens = (np.array(column) for column in zip(*alone.values()))
    assert whole["d0"] == (pytest.approx((nll * tokens).sum() / 150, abs=1e-5), 150)
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["longer_than_context"] == 1
    assert Scores.open(tmp_path / "whole").origins[0].max_length == 33


def test_without_bos_a_document_of_one_token_has_nothing_to_score(tmp_path):
    lm = lm_of()
    lm.tokenizer.bos_token = None
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    report = score(lm, corpus_of(tmp_path / "corpus", ["a", "abc"]), out=tmp_path / "scores").manifest["metrics"]
    assert report["dropped"] == {"no token to score": 1}
    assert (report["scored"], report["tokens"]) == (1, 2)


def test_max_tokens_reads_the_beginning_only_and_is_recorded(lm, tmp_path):
    text = "".join(texts(9))[:150]
    some = scores_of(lm, corpus_of(tmp_path / "a", [text]), tmp_path / "some", reading=Reading(33, max_tokens=40))
    head = scores_of(lm, corpus_of(tmp_path / "b", [text[:40]]), tmp_path / "head", reading=Reading(33))
    assert some["d0"] == (pytest.approx(head["d0"][0], abs=1e-6), 40)
    assert Scores.open(tmp_path / "some").origins[0].max_tokens == 40


def test_a_model_that_knows_nothing_is_equally_surprised_by_all_and_hashes_decide(tmp_path):
    lm = lm_of(tie_word_embeddings=False)
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()
    corpus = open_corpus([written(tmp_path / "corpus", texts(60))])
    found = table(score(lm, corpus, out=tmp_path / "scores").path)
    assert found["nll"] == pytest.approx([math.log(260)] * 60, abs=1e-6)
    assert len(set(found["nll"])) == 1
    scores = Scores.open(tmp_path / "scores")
    for criterion in ("low", "medium", "high"):
        for rate in (0.1, 0.33, 0.5, 0.99):
            selection = select(scores, criterion=criterion, rate=rate)
            assert sum(selection.keep(part).sum() for part in scores.parts(ids=True)) == round(rate * 60)


def test_a_window_beyond_the_positions_of_the_reference_is_an_error(lm, tmp_path):
    corpus = corpus_of(tmp_path / "corpus", texts(3))
    positions = lm.model.config.max_position_embeddings
    with pytest.raises(ConfigError, match=f"--max-length: {positions + 1} does not work"):
        score(lm, corpus, out=tmp_path / "scores", reading=Reading(max_length=positions + 1))
    assert not list(tmp_path.glob("scores*"))


def test_what_cannot_be_read_is_counted_by_reason(lm, tmp_path):
    corpus = corpus_of(tmp_path / "corpus", ["abc", "", " \n", "\ud800x", "def"])
    report = score(lm, corpus, out=tmp_path / "scores").manifest["metrics"]
    assert report["dropped"] == {"empty": 2, "not valid Unicode": 1}
    assert (report["documents"], report["scored"]) == (5, 2)
    with pytest.raises(UserError, match=r"none of 1 documents has a score \(empty: 1\)"):
        score(lm, corpus_of(tmp_path / "blank", [""]), out=tmp_path / "nothing")
    assert not list(tmp_path.glob("nothing*"))
