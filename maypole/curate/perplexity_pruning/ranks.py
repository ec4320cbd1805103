"""Exact ranks in a stream too large to sort: a histogram of leading digits says in which bin a rank lies, and only that
bin is looked at again.

A row's sort key is a sequence of 16-bit digits, most significant first; its weight is how much of the rank it takes.
Memory is that of the histograms, whatever the number of rows. Knows nothing about scores.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16
HELD = 1 << 16
"""Rows that are held and sorted at once, where so few are left."""

Ints = NDArray[np.int64]
Key = tuple[int, ...]
"""A row's digits."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one pass. group: (n,) from 0, each group has ranks of its own; weight: (n,) at least 1.

    ``digit(k, chosen)`` gives the k-th digit (m,) of the rows `chosen` (m,); later digits are asked for few rows only.
    No two rows have all `digits` digits in common.
    """

    group: Ints
    weight: Ints
    digit: Callable[[int, Ints], Ints]
    digits: int


Passes = Callable[[], Iterable[Rows]]
"""Starts one more pass over the same rows in the same order."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The row that covers unit `unit` (from 0) of those whose digits so far lead to `code`."""

    place: int
    code: int
    unit: int


def locate(passes: Passes, units: Callable[[Ints], Mapping[int, Sequence[int]]]) -> dict[int, list[Key]]:
    """The keys of rows at given ranks, exactly.

    Rows of a group are thought of in ascending order, each covering as many units as its weight; a group's total is the
    sum of its weights. ``units(totals)`` gives for each group the units (from 0) whose rows are asked for; their keys
    come in the same order. With weight 1 a unit is a rank.
    """
    first = _histogram(passes, [])
    asked = units(first.weight.sum(axis=1))
    wanted = [_Wanted(i, group, unit) for group, given in asked.items() for i, unit in enumerate(given)]
    owners = [group for group, given in asked.items() for _ in given]
    levels: list[Ints] = []
    histogram = first
    while wanted:
        before = histogram.weight.cumsum(axis=1)
        bins = [int(np.searchsorted(before[w.code], w.unit, side="right")) for w in wanted]
        levels.append(np.unique(np.array([w.code * BINS + b for w, b in zip(wanted, bins)], dtype=np.int64)))
        held = int(histogram.count.ravel()[levels[-1]].sum())
        wanted = [
            _Wanted(
                w.place,
                int(np.searchsorted(levels[-1], w.code * BINS + b)),
                w.unit - (int(before[w.code, b - 1]) if b else 0),
            )
            for w, b in zip(wanted, bins)
        ]
        if held <= HELD or len(levels) == _digits(passes):
            keys = _among_few(passes, levels, wanted)
            return {g: [key for key, owner in zip(keys, owners) if owner == g] for g in asked}
        histogram = _histogram(passes, levels)
    return {group: [] for group in asked}


@dataclass(frozen=True, slots=True)
class _Histogram:
    """weight, count: (codes, BINS)."""

    weight: Ints
    count: Ints


def _histogram(passes: Passes, levels: Sequence[Ints]) -> _Histogram:
    """Of the digit after those of `levels`, for each code there (for each group, where there are none yet)."""
    size = len(levels[-1]) if levels else 0
    weight, count = np.zeros((size, BINS), dtype=np.int64), np.zeros((size, BINS), dtype=np.int64)
    for rows in passes():
        chosen, code = _narrowed(rows, levels)
        if not levels and len(code) and code.max() >= len(weight):
            more = np.zeros((int(code.max()) + 1 - len(weight), BINS), dtype=np.int64)
            weight, count = np.concatenate([weight, more]), np.concatenate([count, more])
        at = code * BINS + rows.digit(len(levels), chosen)
        np.add.at(weight.reshape(-1), at, rows.weight[chosen])
        np.add.at(count.reshape(-1), at, 1)
    return _Histogram(weight, count)


def _narrowed(rows: Rows, levels: Sequence[Ints]) -> tuple[Ints, Ints]:
    """The rows whose digits are among those of `levels`, and the code that these lead to."""
    chosen, code = np.arange(len(rows.group)), rows.group
    for k, active in enumerate(levels):
        led = code * BINS + rows.digit(k, chosen)
        place = np.minimum(np.searchsorted(active, led), len(active) - 1)
        hit = active[place] == led
        chosen, code = chosen[hit], place[hit]
    return chosen, code


def _among_few(passes: Passes, levels: Sequence[Ints], wanted: Sequence[_Wanted]) -> list[Key]:
    """The keys of `wanted`, by sorting all rows that lead to their codes."""
    found: list[tuple[Ints, Ints, Ints]] = []  # code (m,), weight (m,), digits (m, digits)
    for rows in passes():
        chosen, code = _narrowed(rows, levels)
        if len(chosen):
            digits = np.stack([rows.digit(k, chosen) for k in range(rows.digits)], axis=1)
            found.append((code, rows.weight[chosen], digits))
    codes, weights, digits = (np.concatenate(parts) for parts in zip(*found))
    order = np.lexsort([*digits.T[::-1], codes])
    codes, weights, digits = codes[order], weights[order], digits[order]
    keys: list[Key] = []
    for one in wanted:
        start, end = np.searchsorted(codes, [one.code, one.code + 1])
        covered = weights[start:end].cumsum()
        at = start + int(np.searchsorted(covered, one.unit, side="right"))
        keys.append(tuple(digits[at].tolist()))
    return keys


def _digits(passes: Passes) -> int:
    return next((rows.digits for rows in passes()), 0)
