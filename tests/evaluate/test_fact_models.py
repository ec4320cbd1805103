"""A language model that takes apart and verifies: its prompts, what is read off it, and what is remembered."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from maypole.core.errors import ConfigError, UserError
from maypole.engine import Engine, Output, Usage
from maypole.evaluate.fact_cache import FactCache
from maypole.evaluate.fact_models import (
    DEMONSTRATIONS,
    NO_FACTS,
    THREE,
    TWO,
    ModelDecomposer,
    ModelVerifier,
    listed,
    prompt_for,
    question,
)
from maypole.evaluate.factuality import AtomicChecker, Facts
from maypole.evaluate.word_choice import word_choice
from maypole.models import LanguageModel
from tests.engine.engine_fixtures import hf_logprobs, lm_of

CONTEXT = {"max_position_embeddings": 2048}


def lm(fingerprint: str | None = "tiny") -> LanguageModel:
    made = lm_of("llama", **CONTEXT)
    made.fingerprint = fingerprint
    return made


class Scribe:
    """An engine that says what is told, and counts what it is asked; the rest is a real one's."""

    def __init__(self, says: dict[str, str], *, cut: bool = False) -> None:
        self.engine, self.says, self.cut, self.asked = Engine(lm()), says, cut, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Any]) -> list[Output]:
        self.asked += len(requests)
        return [self._said(request) for request in requests]

    def _said(self, request: Any) -> Output:
        sentence = request.prompt.rsplit("Sentence: ", 1)[1].split("\n")[0]
        reason = "length" if self.cut else "stop"
        return Output(self.says[sentence], [], [], reason, Usage(0, 0), 0, request)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("- Mara bakes.\n- Mara sings.\n", ["Mara bakes.", "Mara sings."]),
        ("  - Mara bakes.\n\n- Later.", ["Mara bakes."]),
        ("Sure! Here they are:\n- Mara bakes.\nI hope this helps.\n- Bye.", ["Mara bakes."]),
        (NO_FACTS, []),
        ("", None),
        ("Mara bakes, and that is all.", None),
        ("-\n- ", None),
    ],
)
def test_only_a_list_is_read_as_one(text: str, facts: list[str] | None):
    assert listed(text) == facts


def test_the_last_line_of_a_list_that_was_cut_off_is_left_out():
    assert listed("- Mara bakes.\n- Mara si", cut=True) == ["Mara bakes."]
    assert listed("- Mara ba", cut=True) is None


def test_answers_are_taken_apart_sentence_by_sentence_and_prose_stays_a_sentence():
    says = {"Mara bakes and sings.": "- Mara bakes.\n- Mara sings.", "She is, well, she.": "I cannot.", "Hm.": NO_FACTS}
    scribe: Any = Scribe(says)
    decompose = ModelDecomposer(scribe)
    texts = ["Mara bakes and sings. She is, well, she. Hm.", "", "Hm."]
    assert decompose(["Mara"] * 3, texts) == [
        Facts(["Mara bakes.", "Mara sings.", "She is, well, she."], 1), Facts([], 0), Facts([], 0),
    ]  # fmt: skip
    assert scribe.asked == 3  # the sentence that stands twice is asked about once


def test_a_model_that_never_makes_a_list_gives_no_perfect_score():
    scribe: Any = Scribe({"Mara bakes.": "", "Mara sings.": "What do you mean?"})
    checker = AtomicChecker(ModelDecomposer(scribe), lambda facts, evidence: [False] * len(facts))
    (found,) = checker.check(["Mara"], ["Mara bakes. Mara sings."])
    assert (found.precision, found.errors, found.whole) == (0.0, 2, 2)


def test_all_prompts_begin_alike_and_show_lists_that_are_read_back():
    prompt = prompt_for("Mara\nFenn", "She\nbakes.")
    assert prompt.endswith("Topic: Mara Fenn\nSentence: She bakes.\nFacts:\n")
    shown = [part.split("Facts:\n")[1] for part in prompt.split("\n\n")[1:-1]]
    assert [listed(text) for text in shown] == [list(facts) for _, _, facts in DEMONSTRATIONS]
    assert prompt_for("Tom", "He sings.")[:900] == prompt[:900]


def test_a_language_that_pysbd_lacks_is_refused():
    with pytest.raises(ConfigError, match="language"):
        ModelDecomposer(Engine(lm()), language="xx")(["Mara"], ["Mara bakes."])


def test_the_words_are_read_off_the_distribution_after_the_question():
    made = lm()
    asked = [question(["Mara bakes."], fact, TWO) for fact in ("Mara bakes.", "Tom sings.", "Mara bakes.")]
    found = word_choice(Engine(made), asked, TWO)
    tokenizer = made.tokenizer
    for row, text in zip(found, asked):
        for value, word in zip(row, TWO):
            prompt, whole = tokenizer(text)["input_ids"], tokenizer(f"{text} {word}")["input_ids"]
            assert value == pytest.approx(sum(hf_logprobs(made.model, prompt, whole[len(prompt) :])), abs=1e-3)
    np.testing.assert_array_equal(found[0], found[2])


def test_questions_about_one_passage_share_all_but_the_fact():
    first, second = (question(["A long passage."], fact, THREE) for fact in ("Mara bakes.", "Tom sings."))
    shared = first.index("Claim: ") + len("Claim: ")
    assert first[:shared] == second[:shared]
    assert "True, False or Unknown? Answer:" in first


def told(monkeypatch: pytest.MonkeyPatch, words: dict[str, str]) -> list[str]:
    """Have the verifier hear `words`: the end of a passage -> the word that is likeliest; what was asked comes back."""
    heard: list[str] = []

    def choose(engine: Any, questions: Sequence[str], choices: Sequence[str], cache: Any = None) -> np.ndarray:
        heard.extend(questions)
        found = [next(word for end, word in words.items() if f"{end}\n\nClaim" in text) for text in questions]
        return np.array([[float(word == choice) for choice in choices] for word in found]).reshape(-1, len(choices))

    monkeypatch.setattr("maypole.evaluate.fact_models.word_choice", choose)
    return heard


def test_documents_that_contradict_each_other_make_a_fact_disputed_and_not_supported(monkeypatch):
    told(monkeypatch, {"yes": "True", "no": "False", "silent": "Unknown"})
    evidence = [["yes", "silent"], ["no", "silent"], ["yes", "no"], ["silent"], [], ["yes", "yes"]]
    verify = ModelVerifier(Engine(lm()))
    verdicts = verify(["fact"] * len(evidence), evidence)
    assert verdicts == ["supported", "contradicted", "disputed", "unknown", "unknown", "supported"]
    checker = AtomicChecker(lambda t, x: [["fact"]], verify, lambda query, k: ["yes", "no"])
    (found,) = checker.check(["topic"], ["text"])
    assert (found.correct, found.errors, found.disputed) == (0, 1, 1)


def test_read_together_the_best_passage_stands_last_and_a_fact_is_supported_or_unknown(monkeypatch):
    heard = told(monkeypatch, {"yes": "True", "no": "False"})
    verify = ModelVerifier(Engine(lm()), together=True)
    assert verify(["fact"] * 3, [["yes", "no"], ["no", "yes"], []]) == ["supported", "unknown", "unknown"]
    assert "Passage: no\nPassage: yes\n\nClaim: fact\nTrue or False?" in heard[0]
    assert len(heard) == 2


def test_a_passage_that_does_not_fit_the_context_is_refused_with_its_length():
    with pytest.raises(UserError, match=r"a question of \d,\d+ tokens does not fit the context of 2,048"):
        ModelVerifier(Engine(lm()))(["Mara bakes."], [["word " * 600]])


class CountingEngine(Scribe):
    def score(self, requests: Sequence[Any]) -> Any:
        self.asked += len(requests)
        return self.engine.score(requests)


def test_what_a_model_said_is_remembered_by_content_and_by_model(tmp_path):
    cache = FactCache(tmp_path / "facts.sqlite")
    engine: Any = CountingEngine({"Mara bakes.": "- Mara bakes."})
    facts, evidence = ["Mara bakes.", "Tom sings."], [["Mara bakes bread."], ["Mara bakes bread."]]
    verdicts = ModelVerifier(engine, cache)(facts, evidence)
    parts = ModelDecomposer(engine, cache)(["Mara"], ["Mara bakes."])
    assert engine.asked == 3
    assert ModelVerifier(engine, cache)(facts[::-1], evidence) == verdicts[::-1]
    assert ModelDecomposer(engine, FactCache(tmp_path / "facts.sqlite"))(["Mara"], ["Mara bakes."]) == parts
    assert engine.asked == 3
    engine.engine.lm.fingerprint = "another"
    ModelVerifier(engine, cache)(facts[:1], evidence[:1])
    assert engine.asked == 4
    engine.engine.lm.fingerprint = None  # trained in memory: nobody's
    ModelVerifier(engine, cache)(facts[:1], evidence[:1])
    ModelVerifier(engine, cache)(facts[:1], evidence[:1])
    assert engine.asked == 6


def test_a_cache_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "facts.sqlite").write_text("not a database at all, " * 50)
    with pytest.raises(UserError, match=r"facts\.sqlite: the cache cannot be used"):
        FactCache(tmp_path / "facts.sqlite").remember(["a"], lambda places: [1])


def test_more_keys_than_a_statement_takes_are_remembered(tmp_path):
    cache = FactCache(tmp_path / "facts.sqlite")
    keys = [str(i % 1200) for i in range(1500)]
    assert cache.remember(keys, lambda places: [keys[i] for i in places]) == keys
    assert cache.remember(keys, lambda places: pytest.fail("all are known")) == keys
    with sqlite3.connect(tmp_path / "facts.sqlite") as file:
        assert file.execute("SELECT count(*) FROM facts").fetchone() == (1200,)


def test_checked_by_a_model_order_space_and_repetition_change_nothing():
    verify = ModelVerifier(Engine(lm()))
    checker = AtomicChecker(lambda t, x: [s.split(".") for s in x], verify, lambda query, k: ["Mara bakes.", "Tom is."])
    one, two = checker.check(["a", "a"], ["Mara bakes. Tom sings.", " Tom  sings.\nMara bakes. tom sings."])
    assert sorted(map(repr, one.atoms)) == sorted(map(repr, two.atoms))
