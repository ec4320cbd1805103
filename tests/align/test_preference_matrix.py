"""Preference matrices: their laws, what scores make of them, and what is not one."""

from itertools import permutations

import numpy as np
import pytest

from maypole.align.preference_matrix import checked, from_scores, win_rates
from maypole.core.judge import matrix

CIRCLE = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
SCORES = np.random.default_rng(0).normal(0, 3, (4, 5))


def test_rates_of_winning_average_to_half_for_scores_and_for_circles():
    np.testing.assert_allclose(win_rates(from_scores(SCORES)).mean(axis=-1), 0.5)
    np.testing.assert_allclose(win_rates(CIRCLE), 0.5)


def test_a_rate_of_winning_counts_the_answer_itself_as_a_draw():
    assert win_rates([[0.5, 0.9], [0.1, 0.5]]).tolist() == pytest.approx([0.7, 0.3])


def test_scores_give_both_orders_that_sum_to_one_and_no_circle():
    p = from_scores(SCORES)
    np.testing.assert_allclose(p + p.swapaxes(-1, -2), 1)
    np.testing.assert_array_equal(np.diagonal(p, axis1=-2, axis2=-1), 0.5)
    for row in p:
        for a, b, c in permutations(range(5), 3):
            assert not (row[a, b] > 0.5 and row[b, c] > 0.5) or row[a, c] > 0.5


def test_only_differences_of_scores_count_however_large():
    np.testing.assert_allclose(from_scores(SCORES + 7), from_scores(SCORES))
    assert from_scores([1e4, 0, -1e4]).tolist() == [[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]


def test_a_judges_matrix_is_one():
    def longer(prompts: list, a: list, b: list, **columns: list) -> list[float | None]:
        return [1 / (1 + 2.0 ** (len(y) - len(x))) for x, y in zip(a, b)]

    found = matrix(longer, ["p"], [["a", "bb", "ccc"]])
    np.testing.assert_array_equal(checked(found), found)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([[0.5]], "two answers or more, found 1 × 1"),
        ([[0.5, 0.5]], "found 1 × 2"),
        ([0.5, 0.5], "found 2"),
        ([[0.5, 0.9], [0.2, 0.5]], r"is 1 off by 0\.1"),
        ([[0.6, 0.9], [0.1, 0.5]], r"is 1 off by 0\.2"),
        ([[0.5, 1.2], [-0.2, 0.5]], r"not in \[0, 1\]: 1\.2"),
        ([[0.5, np.nan], [0.1, 0.5]], r"not in \[0, 1\]: nan"),
    ],
)
def test_what_is_no_preference_matrix_is_refused(wrong: list, says: str):
    with pytest.raises(ValueError, match=says):
        win_rates(wrong)


def test_four_digits_are_enough():
    assert checked([[0.5, 0.33333], [0.66662, 0.5]])[0, 1] == 0.33333
