import numpy as np
import pytest

from maypole.core.errors import ConfigError, DataError
from maypole.engine import Engine, Sampling
from maypole.evaluate import exact_match, f1, normalize, rouge_l, task_scores
from maypole.evaluate.tasks import scored
from tests.engine.engine_fixtures import lm_of


def test_normalising_drops_case_articles_and_punctuation():
    assert normalize("The  Cat, an Owl!") == "cat owl"
    assert exact_match("the cat.", ["dog", "Cat"]) == 1.0
    assert exact_match("cats", ["cat"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red green", ["green blue"], 0.5),
        ("red red", ["red"], 2 / 3),
        ("x", ["y", "x y"], 2 / 3),
        ("", ["a"], 1.0),
        ("", ["word"], 0.0),
        ("word", [], 0.0),
    ],
)
def test_f1_counts_common_words(prediction: str, answers: list[str], expected: float):
    assert f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman police killed", "police killed the gunman", 0.5),
        ("a b c d", "a c d", 6 / 7),
        ("", "a", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(prediction: str, answer: str, expected: float):
    assert rouge_l(prediction, [answer]) == pytest.approx(expected)


def test_task_scores_keep_items_and_split_by_task():
    rows = [
        {"prompt": "1", "answers": ["yes"], "task": "a"},
        {"prompt": "2", "answer": "no", "task": "b"},
        {"prompt": "3", "completion": "no", "task": "b"},
    ]
    found = scored(["yes", "yes no", "no"], rows, ["exact_match", "f1"])
    assert found.scores["exact_match"].items.tolist() == [1, 0, 1]
    assert found.by_task["b"]["f1"].mean == pytest.approx((2 / 3 + 1) / 2)
    better = scored(["yes", "no", "no"], rows, ["exact_match"]).scores["exact_match"]
    assert better.change_from(found.scores["exact_match"]).mean == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="no reference answer"):
        scored(["x"], [{"prompt": "1"}], ["f1"])
    with pytest.raises(ConfigError, match="rouge_l"):
        scored(["x"], rows[:1], ["rouge"])


def test_tasks_are_answered_by_the_engine():
    engine = Engine(lm_of())
    rows = [{"prompt": f"q{i}", "answers": ["x"]} for i in range(5)]
    sampling = Sampling(max_tokens=6, temperature=0.0)
    found = task_scores(engine, rows, metrics={"long": lambda p, row: float(len(p) > 3)}, sampling=sampling)
    again = task_scores(engine, rows, metrics=["exact_match"], sampling=sampling)
    assert found.predictions == again.predictions
    own = [{**row, "answers": [p]} for row, p in zip(rows, found.predictions)]
    right = task_scores(engine, own, metrics=["exact_match"], sampling=sampling).scores["exact_match"]
    assert right.items.tolist() == [1.0] * 5
    assert np.isfinite(right.interval.low)
