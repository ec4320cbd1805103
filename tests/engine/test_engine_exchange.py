"""On a clock of its own: everybody has a turn, nothing is beyond the budget, who is needed stays."""

import math
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.engine.exchange import Exchange, Moves

CYCLE, TICK = 2.0, 0.25


@dataclass
class Traffic:
    """Requests of adapters that start as soon as they may, and run for `service` seconds."""

    exchange: Exchange[str]
    costs: dict[str, int]
    service: float
    pinned: frozenset[str] = frozenset()
    now: float = 0.0
    waiting: list[tuple[str, float]] = field(default_factory=list)
    running: list[tuple[str, float]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def tick(self, *arriving: str) -> Moves[str]:
        """One step; every promise of the exchange is checked."""
        self.waiting += [(key, self.now) for key in arriving]
        self.running = [(key, end) for key, end in self.running if end > self.now]
        in_use = {key for key, _ in self.running}
        before = set(self.exchange.active)
        wanted = dict.fromkeys(key for key, _ in self.waiting)
        moves = self.exchange.update(self.now, wanted, in_use, self.costs, self.pinned)
        assert set(self.exchange.active) == before - set(moves.out) | set(moves.into)
        assert not {*moves.out} & {*moves.into}
        assert not {*moves.out} & {*in_use, *self.pinned}
        assert sum(self.costs[key] for key in self.exchange.active) == self.exchange.cost <= self.exchange.budget
        assert len(self.exchange.active) <= self.exchange.most
        for key, since in [w for w in self.waiting if self.exchange.admits(w[0])]:
            self.waiting.remove((key, since))
            self.waits.append(self.now - since)
            self.exchange.served(key, self.now)
            self.running.append((key, self.now + self.service))
        self.now += TICK
        return moves


def test_all_stay_where_all_fit():
    traffic = Traffic(Exchange(3, 8, CYCLE), dict.fromkeys("abc", 1), service=1.0)
    moved = [traffic.tick("a", "b", "c") for _ in range(40)]
    assert moved[0] == Moves([], ["a", "b", "c"])
    assert set(map(str, moved[1:])) == {str(Moves([], []))}
    assert set(traffic.waits) == {0.0}


def test_the_longest_unused_makes_way_first_and_at_once():
    traffic = Traffic(Exchange(2, 8, CYCLE), dict.fromkeys("abc", 1), service=TICK)
    for key in "aab":
        traffic.tick(key)
    traffic.tick()
    assert traffic.tick("c") == Moves(["a"], ["c"])


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(2, 12), places=st.integers(1, 5), service=st.floats(TICK, 3.0),
    seed=st.randoms(use_true_random=False),
)  # fmt: skip
def test_with_adapters_of_one_size_nobody_waits_longer_than_the_turns_before_it(count, places, service, seed):
    names = [f"a{i}" for i in range(count)]
    traffic = Traffic(Exchange(places, places, CYCLE), dict.fromkeys(names, 1), service)
    for _ in range(200):
        traffic.tick(*(name for name in names if seed.random() < 0.7))
    turns = math.ceil(max(count - places, 0) / places)
    left = [traffic.now - since for _, since in traffic.waiting]
    assert max(traffic.waits + left) <= turns * (CYCLE + service + 2 * TICK) + (service + TICK if turns else 0.0)


@settings(max_examples=15, deadline=None)
@given(
    costs=st.lists(st.integers(1, 6), min_size=2, max_size=9), service=st.floats(TICK, 3.0),
    most=st.integers(1, 4), seed=st.randoms(use_true_random=False),
)  # fmt: skip
def test_small_and_large_ones_all_have_their_turn(costs, service, most, seed):
    table = {f"a{i}": cost for i, cost in enumerate(costs)}
    traffic = Traffic(Exchange(6, most, CYCLE), table, service)
    for _ in range(200):
        traffic.tick(*(name for name in table if seed.random() < 0.7))
    assert max(traffic.waits) <= (len(table) + 1) * (CYCLE + service + 2 * TICK)
    left = [traffic.now - since for _, since in traffic.waiting]
    assert max(left, default=0.0) <= (len(table) + 1) * (CYCLE + service + 2 * TICK)


def test_a_pinned_adapter_stays_and_the_others_share_the_rest():
    costs = dict.fromkeys("pab", 1)
    traffic = Traffic(Exchange(2, 8, CYCLE), costs, service=0.5, pinned=frozenset("p"))
    traffic.tick("p")
    for _ in range(100):
        traffic.tick("a", "b")
        assert "p" in traffic.exchange.active
    assert max(traffic.waits) <= CYCLE + 0.5 + 2 * TICK


def test_one_that_is_on_its_way_holds_nobody_up():
    exchange: Exchange[str] = Exchange(1, 8, CYCLE)
    assert exchange.update(0.0, ["slow", "quick"], [], {"quick": 1}) == Moves([], ["quick"])
    assert exchange.update(9.0, ["slow", "quick"], ["quick"], {"quick": 1}) == Moves([], [])
    assert exchange.admits("quick")


def test_a_large_one_waits_a_cycle_for_small_ones_and_is_then_next():
    exchange: Exchange[str] = Exchange(4, 8, CYCLE)
    costs = {"old": 2, "large": 4, "small": 1, "late": 1}
    exchange.update(0.0, ["old"], [], costs)
    exchange.served("old", 0.0)
    assert exchange.update(0.1, ["large", "small"], ["old"], costs) == Moves([], ["small"])
    late = exchange.update(2.5, ["large", "late"], ["old", "small"], costs)
    assert late == Moves([], [])
    assert not exchange.admits("old")
    assert exchange.update(3.0, ["large", "late"], [], costs) == Moves(["old", "small"], ["large"])


def test_a_turn_begins_with_the_first_request_served():
    """However long it took to load: who was sent away before would never be served."""
    exchange: Exchange[str] = Exchange(1, 8, CYCLE)
    costs = {"a": 1, "b": 1}
    exchange.update(0.0, ["a", "b"], [], costs)
    assert exchange.update(50.0, ["a", "b"], [], costs) == Moves([], [])
    exchange.served("a", 51.0)
    exchange.update(51.0, ["a", "b"], ["a"], costs)
    assert exchange.admits("a")
    exchange.update(53.0, ["a", "b"], ["a"], costs)
    assert not exchange.admits("a")
    assert exchange.update(54.0, ["a", "b"], [], costs) == Moves(["a"], ["b"])


def test_what_is_offered_takes_nobodys_place():
    exchange: Exchange[str] = Exchange(2, 8, CYCLE)
    assert exchange.offer(0.0, "a", 1, ()) == Moves([], ["a"])
    assert exchange.offer(0.0, "b", 1, ()) == Moves([], ["b"])
    assert exchange.offer(1.0, "c", 1, {"a", "b"}) == Moves([], [])
    assert exchange.offer(1.0, "c", 1, {"a"}) == Moves(["b"], ["c"])
    exchange.update(2.0, ["d"], ["a", "c"], {"d": 1})
    assert exchange.offer(3.0, "e", 1, {"a"}) == Moves([], [])  # d waits for that place


def test_who_is_gone_leaves_its_place():
    exchange: Exchange[str] = Exchange(1, 8, CYCLE)
    exchange.update(0.0, ["a", "b"], [], {"a": 1, "b": 1})
    exchange.leave("a")
    assert exchange.cost == 0
    assert exchange.update(0.1, ["b"], [], {"b": 1}) == Moves([], ["b"])
