"""Which rows make a step, and which of them are computed together. Depends on the seed and the step alone.

So a resumed run needs no cursor, and memory settings never change what is learnt. Knows nothing about tensors.
"""

import math
from dataclasses import dataclass

import numpy as np

from maypole.core.seeds import derive


@dataclass(frozen=True, slots=True)
class Order:
    """Rows of one round in passes, each shuffled anew unless told otherwise.

    `examples_per_step` make a step; the last step of the last pass may be short.
    """

    rows: int
    examples_per_step: int
    epochs: float
    seed: int
    round: int = 0
    shuffle: bool = True

    @property
    def examples(self) -> int:
        """Rows seen over all passes."""
        return max(1, round(self.rows * self.epochs))

    @property
    def steps(self) -> int:
        return math.ceil(self.examples / self.examples_per_step)

    def step(self, index: int) -> np.ndarray:
        """Row numbers of step `index`; steps beyond the last begin further passes."""
        begin = index * self.examples_per_step
        end = begin + self.examples_per_step
        if index < self.steps:
            end = min(end, self.examples)
        taken: list[np.ndarray] = []
        for epoch in range(begin // self.rows, (end - 1) // self.rows + 1):
            shuffled = self._pass(epoch)
            base = epoch * self.rows
            taken.append(shuffled[max(begin - base, 0) : end - base])
        return np.concatenate(taken)

    def _pass(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rows)
        return np.random.default_rng(derive(self.seed, "order", self.round, epoch)).permutation(self.rows)


def micro_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Indices into `lengths` put together so that each batch has at most `budget` tokens (a longer row stands alone).

    First fit, longest first, into as few batches as that gives; deterministic.
    """
    order = np.argsort(-lengths, kind="stable")
    rooms: list[int] = []
    batches: list[list[int]] = []
    for i in order:
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
