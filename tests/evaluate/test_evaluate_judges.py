from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maypole.core.errors import ConfigError, JudgeError, UnsupportedCapability, UserError
from maypole.core.identity import identity
from maypole.core.judge import call_reward
from maypole.evaluate import judges, kl, pair_accuracy, win_rate
from tests.engine.engine_fixtures import lm_of, random_ids, with_adapters

FILE = """
def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]

def shy(prompts, completions, **columns):
    return [None if c == "?" else 1.0 for c in completions]

def first(prompts, a, b, **columns):
    return [1.0 for _ in prompts]

def longer(prompts, a, b, **columns):
    return [0.5 if len(x) == len(y) else float(len(x) > len(y)) for x, y in zip(a, b)]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def test_a_function_with_a_and_b_is_a_preference(file: str):
    assert judges.is_preference(judges.load(f"{file}:longer"))
    reward = judges.load(f"{file}:length")
    assert not judges.is_preference(reward)
    assert identity(reward) == identity(judges.load(f"{file}:length")) is not None


def test_what_is_no_judge_says_what_is(file: str, tmp_path: Path):
    with pytest.raises(UserError, match="functions there: length, shy, first, longer"):
        judges.load(f"{file}:missing")
    with pytest.raises(UserError, match="no such file"):
        judges.load("absent.py:f")
    with pytest.raises(UserError, match="not a judge"):
        judges.load("something")
    with pytest.raises(UnsupportedCapability, match="behind a URL cannot judge"):
        judges.load("https://example.org/v1")
    with pytest.raises(UserError, match="holds no model"):
        judges.load(str(tmp_path))
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(JudgeError, match="ZeroDivisionError"):
        judges.load(f"{broken}:f")


def test_several_rewards_are_added_by_weight_and_those_without_opinion_left_out(file: str):
    both = judges.load_all([f"{file}:length", f"{file}:shy"], [0.5, 10.0])
    assert call_reward(cast(Any, both), ["p"] * 2, ["ab", "?"]).scores == [11.0, 0.5]
    with pytest.raises(ConfigError, match="one per judge"):
        judges.load_all([f"{file}:length"], [1.0, 2.0])
    with pytest.raises(UserError, match="cannot be added"):
        judges.load_all([f"{file}:length", f"{file}:longer"])


def test_ties_count_half_in_a_win_rate(file: str):
    a, b, prompts = ["aaa", "a", "aa", "aaaa"], ["b", "bb", "bb", "b"], ["p"] * 4
    for name in ("length", "longer"):
        found = win_rate(a, b, judges.load(f"{file}:{name}"), prompts)
        assert (found.rate, found.wins, found.ties, found.losses) == (0.625, 2, 1, 1)
        back = win_rate(b, a, judges.load(f"{file}:{name}"), prompts)
        assert found.rate + back.rate == 1.0
        assert found.interval.low < 0.625 < found.interval.high


def test_a_liking_for_first_places_cancels(file: str):
    first = judges.load(f"{file}:first")
    assert win_rate(["x"] * 3, ["y"] * 3, first, ["p"] * 3).rate == 0.5
    assert win_rate(["x"] * 3, ["y"] * 3, first, ["p"] * 3, both_orders=False).rate == 1.0


def test_pairs_without_an_opinion_are_counted_apart(file: str):
    shy = judges.load(f"{file}:shy")
    found = win_rate(["x", "?"], ["y", "y"], shy, ["p"] * 2)
    assert (found.items.tolist(), found.left_out) == ([0.5], 1)
    with pytest.raises(JudgeError, match="any of 1 pairs"):
        win_rate(["?"], ["y"], shy, ["p"])


def test_pair_accuracy_counts_preferred_chosen_answers(file: str):
    rows = [
        {"prompt": "p", "chosen": "long", "rejected": "x"},
        {"prompt": "p", "chosen": "x", "rejected": "long"},
        {"prompt": "p", "chosen": "ab", "rejected": "cd"},
        {"prompt": "p", "chosen": "abc", "rejected": ""},
    ]
    for name in ("length", "longer"):
        found = pair_accuracy(rows, judges.load(f"{file}:{name}"))
        assert (found.accuracy, found.items.tolist()) == (0.625, [1, 0, 0.5, 1])


def test_kl_is_zero_between_equals_and_its_estimate_agrees_with_the_exact_one():
    lm = with_adapters(lm_of(), "a")
    prompts = random_ids([5, 6, 7, 8])
    same = kl(lm, lm, prompts, max_tokens=5)
    assert np.abs(same.items).max() < 1e-6
    found = kl(lm, lm.with_adapter(None), prompts[:1], max_tokens=1, samples=400)
    exact = _exact(lm, prompts[0])
    assert exact > 0.05
    assert abs(found.per_completion - exact) < 0.2 * exact
    assert found.tokens.tolist() == [400]


def _exact(lm, prompt: list[int]) -> float:
    import torch

    tables = []
    for view in (lm, lm.with_adapter(None)):
        with view.active() as model, torch.no_grad():
            tables.append(torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1))
    p, q = tables
    return float((p.exp() * (p - q)).sum())
