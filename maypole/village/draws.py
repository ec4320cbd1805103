"""Draws that are the same on every machine: one `random.Random` per row, used through `.random()` alone.

Python promises that sequence for a given integer seed; choice, shuffle and sample stand on top of it here, because
theirs may change between versions. Content splits hash the content itself. Knows nothing about the world.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from maypole.core.seeds import derive, uniform

T = TypeVar("T")


class Draws:
    """The random numbers of one place, named by `seed` and `names` (see `maypole.core.seeds.derive`)."""

    __slots__ = ("names", "seed", "unit")

    def __init__(self, seed: int, *names: str | int) -> None:
        self.seed, self.names = seed, names
        self.unit = random.Random(derive(seed, *names)).random

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def below(self, stop: int) -> int:
        """An integer in [0, stop)."""
        return int(self.unit() * stop)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + int(self.unit() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def pick_other(self, items: Sequence[T], *avoid: T) -> T:
        """One of `items` that is none of `avoid`; `items` must hold one."""
        while True:
            item = items[int(self.unit() * len(items))]
            if item not in avoid:
                return item

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        point = self.unit() * sum(weights)
        for item, weight in zip(items, weights):
            point -= weight
            if point < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in random order (Fisher and Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            out[last], out[other] = out[other], out[last]
        return out

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` items at different positions, in random order."""
        if count * 4 > len(items):
            return self.shuffled(items)[:count]
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            chosen[int(self.unit() * len(items))] = None
        return [items[index] for index in chosen]


def held_out(share: float, *content: str | int) -> bool:
    """Whether this content belongs to the held-out `share`: a property of the content, the same in every world."""
    return uniform(0, "held out", *content) < share
