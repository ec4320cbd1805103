"""Self-play on a table of answers: no regret on average, an orbit at the end, the equilibrium of linear programming."""

import math

import numpy as np
import pytest

from maypole.align.matrix_game import duality_gap, equilibrium, multiplicative_weights
from maypole.align.preference_matrix import from_scores

CIRCLE = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])


def game(k: int, seed: int) -> np.ndarray:
    """Preferences drawn at random, with circles in them."""
    upper = np.triu(np.random.default_rng(seed).random((k, k)), 1)
    return upper + np.tril(1 - upper.T, -1) + np.eye(k) / 2


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("k", [3, 10, 50])
@pytest.mark.parametrize("seed", range(5))
def test_the_average_policy_keeps_the_bound_of_no_regret(k: int, steps: int, seed: int):
    play = multiplicative_weights(game(k, seed), eta=math.sqrt(8 * math.log(k) / steps), steps=steps)
    assert play.average_gap <= math.sqrt(math.log(k) / (2 * steps))


def starts() -> list[np.ndarray]:
    return [np.random.default_rng(seed).dirichlet(np.ones(3)) for seed in range(5)]


def test_on_a_circle_the_average_comes_closer_and_the_last_policy_does_not():
    gaps = {}
    for steps in (100, 1000):
        eta = math.sqrt(8 * math.log(3) / steps)
        plays = [multiplicative_weights(CIRCLE, eta=eta, steps=steps, start=start) for start in starts()]
        gaps[steps] = np.mean([p.average_gap for p in plays]), np.mean([p.last_gap for p in plays])
    assert gaps[100] == pytest.approx((0.0606, 0.243), abs=1e-3)
    assert gaps[1000] == pytest.approx((0.0181, 0.186), abs=1e-3)


def test_without_circles_the_last_policy_is_the_answer_that_beats_all():
    play = multiplicative_weights(from_scores([0.0, 2.0, 1.0, -3.0]), eta=1.0, steps=200)
    assert play.last.argmax() == 1
    assert play.last[1] > 0.999
    assert play.last_gap < 1e-3


def test_the_average_policy_nears_the_equilibrium_of_linear_programming():
    for seed in range(3):
        p, steps = game(10, seed), 4000
        policy, value = equilibrium(p)
        assert value == pytest.approx(0.5)
        assert duality_gap(p, policy) == pytest.approx(0, abs=1e-9)
        play = multiplicative_weights(p, eta=math.sqrt(8 * math.log(10) / steps), steps=steps)
        assert 0.5 - (policy @ p @ play.average) <= 1e-9  # the equilibrium does not lose to it
        assert play.average_gap <= math.sqrt(math.log(10) / (2 * steps))


def test_a_step_is_one_of_multiplicative_weights():
    start, eta = np.array([0.6, 0.3, 0.1]), 0.7
    weights = start * np.exp(eta * (CIRCLE @ start))
    np.testing.assert_allclose(
        multiplicative_weights(CIRCLE, eta=eta, steps=1, start=start).last, weights / weights.sum()
    )
