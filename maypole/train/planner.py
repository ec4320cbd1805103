"""Which rows make a step, and which of them are computed together, and where. Depends on the seed and the step alone.

So a resumed run needs no cursor, and memory settings never change what is learnt. Knows nothing about tensors.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np

from maypole.core.seeds import derive

_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Order:
    """Rows of one round in passes, `examples_per_step` a step; a pass is shuffled anew unless told otherwise.

    With `epochs` the last step of the last pass may be short; without, pass follows upon pass and every step is full.
    """

    rows: int
    examples_per_step: int
    epochs: float | None
    seed: int
    round: int = 0
    shuffle: bool = True

    @property
    def steps(self) -> int:
        """Steps until the last pass is over."""
        return math.ceil(self._examples() / self.examples_per_step)

    def step(self, index: int) -> np.ndarray:
        """Row numbers of step `index`, from 0."""
        begin = index * self.examples_per_step
        end = begin + self.examples_per_step
        if self.epochs is not None:
            end = min(end, self._examples())
        taken: list[np.ndarray] = []
        for epoch in range(begin // self.rows, (end - 1) // self.rows + 1):
            rows = _shuffled(self.rows, self.seed, self.round, epoch) if self.shuffle else np.arange(self.rows)
            base = epoch * self.rows
            taken.append(rows[max(begin - base, 0) : end - base])
        return np.concatenate(taken)

    def _examples(self) -> int:
        if self.epochs is None:
            raise ValueError("passes without end have no last step")
        return max(1, round(self.rows * self.epochs))


@lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int, round: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(derive(seed, "order", round, epoch)).permutation(rows)


def micro_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Indices into `lengths` put together so that each batch has at most `budget` tokens (a longer row stands alone).

    First fit, longest first, within windows of 1024 rows; deterministic.
    """
    batches: list[np.ndarray] = []
    for begin in range(0, len(lengths), _WINDOW):
        batches += [begin + b for b in _first_fit(lengths[begin : begin + _WINDOW], budget)]
    return batches


def _first_fit(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    rooms: list[int] = []
    batches: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        for b, room in enumerate(rooms):
            if length <= room:
                batches[b].append(int(i))
                rooms[b] -= length
                break
        else:
            batches.append([int(i)])
            rooms.append(budget - length)
    return [np.sort(np.array(b)) for b in batches]


def shares(costs: np.ndarray, count: int) -> list[np.ndarray]:
    """Indices into `costs` in `count` parts of nearly the same sum; some are empty where there are fewer indices.

    Largest differencing (Karmarkar and Karp) within windows of 1024; deterministic.
    """
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    for begin in range(0, len(costs), _WINDOW):
        for part, found in zip(parts, _differencing(costs[begin : begin + _WINDOW], count)):
            part.append(begin + found)
    return [np.concatenate(part) for part in parts]


def _differencing(costs: np.ndarray, count: int) -> list[np.ndarray]:
    """The two partitions whose sums are furthest apart become one, largest part with smallest, until one is left."""
    nothing: list[tuple[float, list[int]]] = [(0.0, [])] * (count - 1)
    heap = [(-float(cost), i, [(float(cost), [i]), *nothing]) for i, cost in enumerate(costs)]
    heapify(heap)
    while len(heap) > 1:
        _, first, one = heappop(heap)
        _, _, other = heappop(heap)
        merged = sorted(((a + b, p + q) for (a, p), (b, q) in zip(one, reversed(other))), key=lambda part: -part[0])
        heappush(heap, (merged[-1][0] - merged[0][0], first, merged))
    return [np.sort(np.array(part, dtype=np.int64)) for _, part in heap[0][2]]
