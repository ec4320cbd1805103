"""Facts in answers: FActScore's numbers, what counts as a fact, and what happens to answers that are none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.errors import DataError, JudgeError
from maypole.core.identity import identity
from maypole.core.judge import call_reward
from maypole.evaluate import judges
from maypole.evaluate.fact_report import Atom, FactReport, factscore
from maypole.evaluate.factuality import AtomicChecker, FactReward, Facts, declines

TRUE = {"Mara bakes bread", "Mara lives in Elmford", "Tom keeps bees", "Tom sings"}


def sentences(topics: list[str], texts: list[str]) -> list[list[str]]:
    return [text.split(".") for text in texts]


def known(facts: list[str], evidence: list[list[str]]) -> list[bool]:
    return [fact in TRUE for fact in facts]


CHECKER = AtomicChecker(sentences, known)


def report(*supported: bool, **more: Any) -> FactReport:
    atoms = tuple(Atom(f"fact {i}", "supported" if s else "unknown") for i, s in enumerate(supported))
    return FactReport("topic", atoms, **more)


@pytest.mark.parametrize(
    ("facts", "gamma", "expected"),
    [(10, 10, 1.0), (11, 10, 1.0), (5, 10, math.exp(-1)), (1, 10, math.exp(-9)), (5, None, 1.0), (1, None, 1.0)],
)
def test_an_answer_of_few_facts_loses_by_gamma_as_in_factscore(facts: int, gamma: float | None, expected: float):
    assert factscore([report(*[True] * facts)], gamma).score == pytest.approx(expected)
    assert factscore([report(*[True] * facts)], gamma).precision == 1.0


def test_the_score_is_the_mean_of_answers_and_not_the_share_of_all_facts():
    found = factscore([report(True), report(*[False] * 9, True)], gamma=None)
    assert found.precision == pytest.approx((1 + 0.1) / 2)
    assert (found.correct, found.errors, found.facts_per_response) == (1.0, 4.5, 5.5)


def test_an_answer_without_facts_leaves_the_mean_and_lowers_the_respond_ratio():
    found = factscore([report(True, False), report(), report(abstained=True)])
    assert found.precision == 0.5
    assert found.respond_ratio == pytest.approx(1 / 3)
    assert found.correct == pytest.approx(1 / 3)
    assert (found.answers, found.abstained) == (3, 1)


def test_where_nobody_states_anything_there_is_no_precision():
    found = factscore([report(abstained=True)])
    assert (found.precision, found.score, found.respond_ratio) == (None, None, 0.0)
    with pytest.raises(ValueError, match="no answers"):
        factscore([])


ANNOTATED = Path(__file__).parent / "annotated_answers.jsonl"


def human_scores(rows: list[dict[str, Any]], *, irrelevant: bool) -> tuple[list[float], dict[str, int]]:
    """FActScore's labels as reports: S supported; NS, and IR where `irrelevant` facts count, not."""
    labels = {"S": 0, "NS": 0, "IR": 0}
    scores: list[float] = []
    for row in rows:
        atoms = [f for a in row["annotations"] or () for f in a["human-atomic-facts"] or ()]
        for atom in atoms:
            labels[atom["label"]] += 1
        kept = [atom for atom in atoms if irrelevant or atom["label"] != "IR"]
        found = FactReport(
            row["topic"], tuple(Atom(a["text"], "supported" if a["label"] == "S" else "unknown") for a in kept)
        )
        if found.precision is not None:
            scores.append(found.precision)
    return scores, labels


def test_labels_of_people_in_the_published_form_give_macro_means():
    rows = [json.loads(line) for line in ANNOTATED.read_text().splitlines()]
    relevant, labels = human_scores(rows, irrelevant=False)
    every, _ = human_scores(rows, irrelevant=True)
    assert labels == {"S": 4, "NS": 2, "IR": 1}
    assert relevant == pytest.approx([3 / 4, 1 / 2])
    assert every == pytest.approx([3 / 5, 1 / 2])


def test_every_fact_is_checked_and_only_the_supported_ones_are_correct():
    (found,) = CHECKER.check(["Mara"], ["Mara bakes bread. Mara lives in Elmford. Mara has wings."])
    assert [atom.supported for atom in found.atoms] == [True, True, False]
    assert (found.precision, found.correct, found.errors, found.words) == (pytest.approx(2 / 3), 2, 1, 10)


@given(st.permutations(sorted(TRUE)), st.integers(1, 3), st.sampled_from([" ", "  ", "\n", " \t "]))
def test_order_repetition_and_space_change_nothing(facts: list[str], times: int, space: str):
    text = ". ".join(facts * times).replace(" ", space)
    (found,) = CHECKER.check(["all"], [text + ". A false one."])
    assert found.precision == pytest.approx(len(TRUE) / (len(TRUE) + 1))


def test_one_false_fact_beside_n_true_ones_is_n_of_n_plus_one():
    facts = sorted(TRUE)
    for n in range(len(facts) + 1):
        (found,) = CHECKER.check(["all"], [". ".join([*facts[:n], "It rains upwards"])])
        assert found.precision == pytest.approx(n / (n + 1))


@pytest.mark.parametrize("text", ["", "  \n", "I'm sorry, but I know nothing of Mara.", "I don’t know."])
def test_an_answer_that_declines_is_neither_taken_apart_nor_right(text: str):
    (found,) = CHECKER.check(["Mara"], [text])
    assert declines(text)
    assert found.abstained
    assert found.precision is None
    assert not found.responds


def test_a_decomposition_into_nothing_is_no_response_and_never_a_perfect_one():
    (found,) = AtomicChecker(lambda topics, texts: [[] for _ in texts], known).check(["Mara"], ["Well, well."])
    assert found.precision is None
    assert not found.abstained
    assert FactReward(AtomicChecker(lambda topics, texts: [["", " . "]], known))(["Mara"], ["Well."]) == [0.0]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ("Here are the facts you asked for: Mara bakes", "taken apart into 'Here are"),
        (None, "taken apart into 'None'"),
        ([1, 2], "taken apart into"),
    ],
)
def test_prose_instead_of_a_list_is_refused_with_its_row(facts: Any, says: str):
    checker = AtomicChecker(lambda topics, texts: [["Tom sings"], facts], known)
    with pytest.raises(JudgeError, match=says) as caught:
        checker.check(["Tom", "Mara", "Mara"], ["Tom sings.", "", "Mara bakes."])
    assert caught.value.where == "row 3"


def test_lists_or_verdicts_of_the_wrong_number_are_refused():
    with pytest.raises(JudgeError, match="2 texts were taken apart into 1 lists"):
        AtomicChecker(lambda topics, texts: [["a"]], known).check(["a", "b"], ["a", "b"])
    with pytest.raises(JudgeError, match="1 facts got 0 verdicts"):
        AtomicChecker(sentences, lambda facts, evidence: []).check(["a"], ["a"])
    with pytest.raises(JudgeError, match="the verdict on 'a' is 'maybe'"):
        AtomicChecker(sentences, lambda facts, evidence: ["maybe"]).check(["a"], ["a"])  # type: ignore


def test_sentences_that_could_not_be_taken_apart_are_counted():
    checker = AtomicChecker(lambda topics, texts: [Facts(["Tom sings", "tom  sings.", "Tom, it is said"], 2)], known)
    (found,) = checker.check(["Tom"], ["Tom sings. Tom, it is said."])
    assert [atom.text for atom in found.atoms] == ["Tom sings", "Tom, it is said"]
    assert found.whole == 1
    assert factscore([found]).whole == 1


def test_passages_are_searched_by_topic_and_fact_and_an_empty_retrieval_supports_nothing():
    asked: list[str] = []

    def search(query: str, k: int) -> list[str]:
        asked.append(query)
        return [f"passage {i}" for i in range(k + 3)] if "bread" in query else []

    def read(facts: list[str], evidence: list[list[str]]) -> list[bool]:
        return [bool(passages) for passages in evidence]

    (found,) = AtomicChecker(sentences, read, search, k=2).check(["Mara"], ["Mara bakes bread. Mara lives in Elmford."])
    assert asked == ["Mara Mara bakes bread", "Mara Mara lives in Elmford"]
    assert [atom.evidence for atom in found.atoms] == [("passage 0", "passage 1"), ()]
    assert [atom.verdict for atom in found.atoms] == ["supported", "unknown"]
    assert factscore([found]).no_evidence == 1


def test_a_topic_without_a_document_of_its_own_is_an_error_that_names_it():
    checker = AtomicChecker(sentences, known, {"Tom": lambda query, k: ["Tom sings"]})
    with pytest.raises(DataError, match="no document has the title 'Mara', 'Ilse'") as caught:
        checker.check(["Tom", "Mara", "Ilse", "Mara"], ["Tom sings"] * 4)
    assert caught.value.field == "topic"


def test_the_reward_is_one_only_where_all_facts_are_supported():
    answers = ["Tom sings. Tom keeps bees.", "Tom sings. Tom flies.", "Tom flies.", "I don't know."]
    assert FactReward(CHECKER)(["Tom"] * 4, answers) == [1.0, 0.5, 0.0, 0.0]
    assert FactReward(CHECKER, silence=0.3)(["Tom"], [""]) == [0.3]
    assert FactReward(CHECKER, gamma=10)(["Tom"], answers[:1]) == [pytest.approx(math.exp(1 - 10 / 2))]


@pytest.mark.parametrize("verdict", [True, False])
def test_a_verifier_that_always_says_the_same_makes_every_pair_a_tie(verdict: bool):
    reward = FactReward(AtomicChecker(sentences, lambda facts, evidence: [verdict] * len(facts)))
    assert len(set(reward(["Tom"] * 3, ["Tom sings.", "Tom flies. Tom swims.", "Tom."]))) == 1


def test_messages_are_checked_as_what_their_last_one_says():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tom?"}]
    assert FactReward(CHECKER)([asked], [[{"role": "assistant", "content": "Tom sings."}]]) == [1.0]


def test_a_reward_in_a_file_is_a_judge(tmp_path):
    (tmp_path / "facts.py").write_text(
        "from maypole.evaluate.factuality import AtomicChecker, FactReward\n"
        "checker = AtomicChecker(lambda t, x: [s.split('.') for s in x], lambda f, e: [len(a) < 10 for a in f])\n"
        "reward = FactReward(checker)\n"
    )
    judge: Any = judges.load(f"{tmp_path}/facts.py:reward")
    assert not judges.is_preference(judge)
    assert call_reward(judge, ["Tom"], ["Tom sings. Tom sings aloud."]).scores == [0.5]


def test_a_reward_is_known_by_what_it_is_made_of():
    reward = FactReward(AtomicChecker(sentences, known))
    assert identity(reward) == identity(FactReward(AtomicChecker(sentences, known)))
    assert identity(reward) != identity(FactReward(AtomicChecker(sentences, known, k=3)))
    assert identity(FactReward(AtomicChecker(sentences, lambda facts, evidence: [True]))) is None
