"""Whose turn it is: which adapters take part in batches when those that are asked for do not all fit.

Adapters that nobody needs make way first, the longest unused before the others. One that has worked for a cycle takes
no new requests while another waits for its place, and goes to the end of the line once it is idle (LoRAX's exchange,
arXiv 2405.00732, without its head-of-line blocking). A pure data structure: `now` is the caller's clock, adapters are
keys with costs. Knows nothing about files, threads and tensors.
"""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Moves(Generic[Key]):
    """What one update decided: who leaves and who comes."""

    out: list[Key] = field(default_factory=list)
    into: list[Key] = field(default_factory=list)


@dataclass(slots=True)
class _Turn:
    """`since` is when the first request of this turn started, None before: who served nobody yet is not sent away."""

    cost: int
    used: float
    since: float | None = None

    def over(self, now: float, cycle: float) -> bool:
        return self.since is not None and now - self.since >= cycle


class Exchange(Generic[Key]):
    """At most `most` adapters with costs of `budget` in all are active; a turn is `cycle` seconds."""

    def __init__(self, budget: int, most: int, cycle: float) -> None:
        self.budget, self.most, self.cycle = budget, most, cycle
        self.pending: dict[Key, float] = {}
        self.resting: set[Key] = set()
        self._turns: dict[Key, _Turn] = {}

    @property
    def active(self) -> Collection[Key]:
        """Who has a place."""
        return self._turns.keys()

    @property
    def cost(self) -> int:
        """Of all that are active."""
        return sum(turn.cost for turn in self._turns.values())

    def admits(self, key: Key) -> bool:
        """Whether new requests of `key` may start."""
        return key in self._turns and key not in self.resting

    def served(self, key: Key, now: float) -> None:
        """A request of `key` starts."""
        turn = self._turns.get(key)
        if turn is not None and turn.since is None:
            turn.since = now

    def update(
        self,
        now: float,
        waiting: Collection[Key],
        in_use: Collection[Key],
        costs: Mapping[Key, int],
        pinned: Collection[Key] = (),
    ) -> Moves[Key]:
        """Decide for this moment. `waiting` are the keys asked for, the first come first; `in_use` those of running
        requests. One without a cost is on its way and holds nobody up. `pinned` ones stay once they are active."""
        moves: Moves[Key] = Moves()
        for key in (*waiting, *in_use):
            if key in self._turns:
                self._turns[key].used = now
        self.pending = {key: since for key, since in self.pending.items() if key in waiting}
        for key in waiting:
            if key not in self._turns:
                self.pending.setdefault(key, now)
        self.resting.clear()
        busy = {*waiting, *in_use, *pinned}
        missing = self._fill(now, costs, moves, busy)
        if missing and self._rest(now, missing, waiting, in_use, pinned, moves):
            self._fill(now, costs, moves, busy)
        back = [key for key in moves.into if key in moves.out]  # there was room for more than who came
        return Moves([k for k in moves.out if k not in back], [k for k in moves.into if k not in back])

    def offer(self, now: float, key: Key, cost: int, busy: Collection[Key]) -> Moves[Key]:
        """Make `key` active where that takes nobody's place: not one that is `busy`, nor one that others wait for."""
        moves: Moves[Key] = Moves()
        if key not in self._turns and not self.pending.keys() - {key} and self._make_room(cost, moves, busy):
            self._enter(key, cost, now, moves)
        return moves

    def leave(self, key: Key) -> None:
        """`key` is gone, whatever it was doing."""
        self._turns.pop(key, None)
        self.pending.pop(key, None)
        self.resting.discard(key)

    def _fits(self, cost: int) -> bool:
        return len(self._turns) < self.most and self.cost + cost <= self.budget

    def _enter(self, key: Key, cost: int, now: float, moves: Moves[Key]) -> None:
        self.pending.pop(key, None)
        self._turns[key] = _Turn(cost, now)
        moves.into.append(key)

    def _fill(self, now: float, costs: Mapping[Key, int], moves: Moves[Key], busy: Collection[Key]) -> list[int]:
        """Let in who fits, those that wait longest first; the costs of those who do not fit.

        Smaller ones may go before somebody who does not fit until that one has waited for a cycle.
        """
        missing: list[int] = []
        overdue = False
        for key, since in list(self.pending.items()):
            if key not in costs:
                continue
            if not overdue and self._make_room(costs[key], moves, busy):
                self._enter(key, costs[key], now, moves)
            else:
                missing.append(costs[key])
                overdue = overdue or now - since > self.cycle
        return missing

    def _make_room(self, cost: int, moves: Moves[Key], busy: Collection[Key]) -> bool:
        """Let go of idle adapters, the longest unused first; of none where that would not do."""
        idle = sorted((key for key in self._turns if key not in busy), key=lambda key: self._turns[key].used)
        room = self.budget - self.cost + sum(self._turns[key].cost for key in idle)
        if room < cost or len(self._turns) - len(idle) >= self.most:
            return False
        for key in idle:
            if self._fits(cost):
                break
            moves.out.append(key)
            self.leave(key)
        return True

    def _rest(
        self,
        now: float,
        missing: Collection[int],
        waiting: Collection[Key],
        in_use: Collection[Key],
        pinned: Collection[Key],
        moves: Moves[Key],
    ) -> bool:
        """Those whose turn is over take nothing new, the earliest first, until enough will be free.

        Whether somebody left at once: its requests wait at the end of the line.
        """
        left = False
        short, places = sum(missing) - (self.budget - self.cost), len(missing) - (self.most - len(self._turns))
        over = [key for key, turn in self._turns.items() if turn.over(now, self.cycle) and key not in pinned]
        for key in sorted(over, key=lambda key: self._turns[key].since or 0.0):
            if short <= 0 and places <= 0:
                break
            short, places = short - self._turns[key].cost, places - 1
            if key in in_use:
                self.resting.add(key)
            elif key in waiting:
                moves.out.append(key)
                self.leave(key)
                self.pending[key] = now
                left = True
        return left
