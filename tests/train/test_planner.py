"""Which rows make a step depends on the seed and the step alone; batches hold every row once and fit the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.train.planner import Order, micro_batches, shares

lengths = st.lists(st.integers(1, 600), min_size=1, max_size=200).map(np.array)


@given(lengths, st.integers(1, 4096))
def test_every_row_is_in_one_batch_and_batches_fit_the_budget(rows: np.ndarray, budget: int):
    batches = micro_batches(rows, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    assert all(rows[b].sum() <= budget or len(b) == 1 for b in batches)
    assert len(batches) <= max(1, 2 * rows.sum() / budget + (rows > budget).sum() + 1)


@given(st.integers(1, 60), st.integers(1, 17), st.floats(0.1, 4.0), st.integers(0, 9))
def test_passes_see_every_row_equally_often(rows: int, width: int, epochs: float, seed: int):
    order = Order(rows, width, epochs, seed)
    steps = [order.step(i) for i in range(order.steps)]
    counts = np.bincount(np.concatenate(steps), minlength=rows)
    assert counts.sum() == max(1, round(rows * epochs))
    assert counts.max() - counts.min() <= 1
    assert all(len(step) == width for step in steps[:-1])
    assert len(steps[-1]) >= 1


def test_passes_are_shuffled_anew_unless_told_otherwise():
    order = Order(20, 20, 3.0, seed=1)
    assert order.step(0).tolist() != order.step(1).tolist()
    assert order.step(1).tolist() == Order(20, 20, 3.0, seed=1).step(1).tolist()
    assert order.step(0).tolist() != Order(20, 20, 3.0, seed=2).step(0).tolist()
    assert order.step(0).tolist() != Order(20, 20, 3.0, seed=1, round=1).step(0).tolist()
    as_they_stand = Order(5, 2, None, seed=1, shuffle=False)
    assert [as_they_stand.step(i).tolist() for i in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_passes_without_end_have_no_last_step():
    with pytest.raises(ValueError, match="no last step"):
        _ = Order(5, 2, None, seed=1).steps


@given(lengths, st.integers(1, 9))
def test_every_row_is_in_one_share_and_no_share_has_a_row_too_many(rows: np.ndarray, count: int):
    parts = shares(rows, count)
    assert len(parts) == count
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    sums = [rows[part].sum() for part in parts]
    assert max(sums) - min(sums) <= rows.max()


def test_shares_are_nearly_equal_and_always_the_same():
    rows = np.random.default_rng(0).lognormal(4.0, 0.8, 3000)
    parts = shares(rows, 8)
    sums = np.array([rows[part].sum() for part in parts])
    assert sums.max() / sums.mean() < 1.001
    assert all(np.array_equal(a, b) for a, b in zip(parts, shares(rows, 8)))
