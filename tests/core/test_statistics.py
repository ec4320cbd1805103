import itertools
import subprocess
import sys

import numpy as np
import pytest

from maypole.core import statistics
from maypole.core.statistics import Interval, bootstrap, paired_bootstrap, paired_ratio, verdict


def items(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_paired_bootstrap_of_identical_inputs_is_exactly_zero():
    x = items(50)
    assert paired_bootstrap(x, x) == Interval(0.0, 0.0, 0.0)
    assert paired_ratio(x, x, np.arange(1, 51), transform="exp") == Interval(0.0, 0.0, 0.0)


def test_paired_bootstrap_agrees_with_all_resamples_of_five_items():
    after, before = items(5, 1), items(5, 2)
    d = after - before
    every = np.array([d[list(i)].mean() for i in itertools.product(range(5), repeat=5)])
    low, high = np.quantile(every, [0.025, 0.975])
    found = paired_bootstrap(after, before, draws=100_000)
    assert found.mean == pytest.approx(d.mean(), abs=1e-12)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_paired_bootstrap_of_many_items_agrees_with_the_normal_approximation():
    d = items(2_000)
    found = paired_bootstrap(d, np.zeros(2_000))
    half = 1.96 * d.std() / np.sqrt(2_000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_three_items_give_the_smallest_and_the_largest_difference():
    assert paired_bootstrap([0.3, 0.5, 0.2], [0.1, 0.1, 0.1]) == Interval(
        pytest.approx(0.1), pytest.approx(0.4), pytest.approx(0.7 / 3)
    )


def test_pairing_removes_the_spread_between_items():
    hard = np.linspace(0, 100, 40)
    found = paired_bootstrap(hard + 1, hard)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


def test_paired_ratio_weighs_documents_by_their_tokens():
    found = paired_ratio([10.0, 300.0], [20.0, 300.0], [10, 100])
    assert found.mean == pytest.approx(310 / 110 - 320 / 110)
    assert found.low == pytest.approx(-1.0)  # the first document twice
    assert found.high == 0.0  # the second twice


def test_paired_ratio_gives_the_change_in_perplexity_with_each_tokenizers_own_count():
    nll, found_tokens, base_tokens = np.array([100.0, 50.0]), np.array([50, 25]), np.array([40, 20])
    found = paired_ratio(nll, nll, found_tokens, base_tokens, transform="exp")
    assert found.mean == pytest.approx(np.exp(2.0) - np.exp(2.5))
    assert found.low == pytest.approx(found.high)


def test_the_memory_bound_does_not_change_a_bit(monkeypatch):
    x = items(37)
    whole = bootstrap(x)
    monkeypatch.setattr(statistics, "CELLS_IN_MEMORY", 37 * 13)
    assert bootstrap(x) == whole


def test_equal_seeds_agree_and_others_differ():
    x = items(30)
    assert bootstrap(x, seed=3) == bootstrap(x, seed=3)
    assert bootstrap(x, seed=3).low != bootstrap(x, seed=4).low


def test_statistic_may_be_the_median_or_a_function():
    x = np.array([0.0, 0.0, 0.0, 0.0, 100.0])
    assert bootstrap(x, "median").mean == 0.0
    assert bootstrap(x, np.max).high == 100.0
    with pytest.raises(ValueError, match="neither 'mean' nor 'median'"):
        bootstrap(x, "mode")


def test_one_item_never_makes_a_verdict():
    one = paired_bootstrap([5.0], [1.0])
    assert one == Interval(-np.inf, np.inf, 4.0)
    assert verdict(one, "higher") == "no clear change"


@pytest.mark.parametrize(
    ("low", "high", "direction", "said"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "higher", "worse"),
        (0.0, 0.3, "higher", "no clear change"),
        (-0.1, 0.3, "lower", "no clear change"),
        (0.0, 0.0, "lower", "no clear change"),
    ],
)
def test_verdict_needs_an_interval_without_zero(low, high, direction, said):
    assert verdict(Interval(low, high, (low + high) / 2), direction) == said


def test_negation_turns_the_interval_round():
    assert -Interval(-1.0, 3.0, 0.5) == Interval(-3.0, 1.0, -0.5)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="values item 1 is nan"):
        bootstrap([1.0, np.nan])
    with pytest.raises(ValueError, match="2 after, 1 before"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="weight above 0"):
        paired_ratio([1.0, 2.0], [1.0, 2.0], [3, 0])
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap([])


def test_importing_statistics_leaves_scipy_stats_unloaded():
    code = "import sys, maypole.core.statistics; print('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
