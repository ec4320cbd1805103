import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.core.errors import ConfigError
from maypole.serve.parrot.objectives import GROUP, LATENCY, THROUGHPUT, Objective
from maypole.serve.parrot.placement import PATIENCE, Capacity, HostLoad, Job, Scheduler
from maypole.serve.parrot.prefixes import LEAST, Boundary, Keys

SMALL = Capacity(latency=100, throughput=1000)


def job(n: int, tokens: int, objective: Objective = THROUGHPUT, prefix: tuple[bytes, int] | None = None) -> Job:
    return Job(n, None, tokens, objective, (0, 0, n), (Boundary(*prefix),) if prefix else ())


def placed_on(scheduler: Scheduler, *jobs: Job) -> list[str]:
    """Where each starts now, "" for those that wait."""
    for one in jobs:
        scheduler.submit(one)
    found = {one.id: host.name for one, host in scheduler.place()}
    return [found.get(one.id, "") for one in jobs]


def two() -> Scheduler:
    return Scheduler([HostLoad("a", SMALL), HostLoad("b", SMALL)])


def test_a_latency_task_goes_where_it_takes_no_room_from_others():
    scheduler = two()
    assert placed_on(scheduler, job(0, 500)) == ["a"]
    assert placed_on(scheduler, job(1, 20, LATENCY)) == ["b"]
    assert placed_on(scheduler, job(2, 20, LATENCY)) == ["b"]
    assert placed_on(scheduler, job(3, 300)) == ["a"]


def test_who_is_in_a_hurry_keeps_together_so_that_an_engine_stays_free_for_large_batches():
    scheduler = two()
    assert placed_on(scheduler, *(job(n, 30, LATENCY) for n in range(4))) == ["a", "a", "a", "b"]


def test_a_latency_task_waits_for_an_engine_that_then_is_not_filled_up_again():
    scheduler = Scheduler([HostLoad("a", SMALL)])
    long, more = job(0, 500), job(1, 200)
    soon = job(2, 50, LATENCY)
    assert placed_on(scheduler, long) == ["a"]
    assert placed_on(scheduler, soon, more) == ["", ""]
    scheduler.withdraw(long)
    assert [one.id for one, _ in scheduler.place()] == [2]
    scheduler.withdraw(soon)
    assert [one.id for one, _ in scheduler.place()] == [1]


def test_equal_beginnings_go_together_and_count_once():
    scheduler = two()
    prefix = (b"system prompt", 400)
    jobs = [job(n, 450, GROUP, prefix) for n in range(4)]
    assert placed_on(scheduler, *jobs) == ["a"] * 4
    assert scheduler.hosts["a"].load == 400 + 4 * 50
    scheduler.withdraw(jobs[0])
    assert scheduler.hosts["a"].load == 400 + 3 * 50
    for one in jobs[1:]:
        scheduler.withdraw(one)
    assert scheduler.hosts["a"].load == 0
    assert placed_on(scheduler, job(9, 450, GROUP, prefix)) == ["a"]


def test_a_beginning_of_a_few_tokens_decides_nothing():
    assert placed_on(two(), *(job(n, 450, GROUP, (b"short", 20)) for n in range(4))) == ["a", "b", "a", "b"]


def test_a_group_larger_than_any_engine_is_split():
    scheduler = two()
    jobs = [job(n, 450, GROUP, (bytes([n % 2]), 400)) for n in range(30)]
    found = placed_on(scheduler, *jobs)
    assert {(n % 2, host) for n, host in enumerate(found)} == {(0, "a"), (1, "b"), (0, ""), (1, "")}


def test_an_upgrade_reaches_what_waits_and_what_runs():
    scheduler = Scheduler([HostLoad("a", SMALL)])
    running, waiting, other = job(0, 90), job(1, 950), job(2, 950)
    assert placed_on(scheduler, running, waiting, other) == ["a", "", ""]
    scheduler.change(running, LATENCY)
    assert scheduler.hosts["a"].cap() == SMALL.latency
    scheduler.change(other, LATENCY)
    scheduler.withdraw(running)
    assert [one.id for one, _ in scheduler.place()] == [2]


def test_groups_come_before_what_nobody_waits_for():
    scheduler = Scheduler([HostLoad("a", SMALL)])
    assert placed_on(scheduler, job(0, 900), job(1, 900, GROUP)) == ["", "a"]


def test_what_many_overtook_gets_an_engine_to_itself():
    scheduler = Scheduler([HostLoad("a", SMALL)])
    hurried = job(0, 50, LATENCY)
    placed_on(scheduler, hurried)
    big = job(1, 900)
    assert placed_on(scheduler, big) == [""]
    for n in range(2, PATIENCE + 10):
        following = job(n, 50, LATENCY)
        scheduler.submit(following)
        started = [one for one, _ in scheduler.place()]
        scheduler.withdraw(hurried)
        started += [one for one, _ in scheduler.place()]
        if big in started:
            break
        hurried = following
    assert big.host is not None
    assert n <= PATIENCE + 2


def test_barred_engines_and_other_models_are_not_asked():
    scheduler = Scheduler([HostLoad("a", SMALL), HostLoad("b", SMALL, serves=lambda model: model == "m")])
    assert placed_on(scheduler, Job(0, None, 5, LATENCY, (0,), barred=frozenset("a"))) == [""]
    assert placed_on(scheduler, Job(1, "m", 5, LATENCY, (0,), barred=frozenset("a"))) == ["b"]
    assert not scheduler.possible(Job(2, "m", 5000, LATENCY, (0,)))
    assert scheduler.most(Job(2, "m", 5000, LATENCY, (0,))) == 1000


def simulated(draw: random.Random, names: list[str], jobs: list[Job], seconds: list[int]) -> int:
    """When the last ends, of jobs that come one a second and run `seconds`; the bounds are checked on the way."""
    scheduler = Scheduler([HostLoad(name, SMALL) for name in names])
    ends: dict[Job, int] = {}
    now, at = 0, 0
    while at < len(jobs) or ends or scheduler.waiting:
        for one in [one for one, end in ends.items() if end <= now]:
            scheduler.withdraw(one)
            del ends[one]
        if at < len(jobs):
            scheduler.submit(jobs[at])
            at += 1
        for one, _ in scheduler.place():
            ends[one] = now + seconds[int(str(one.id))]
        for host in scheduler.hosts.values():
            assert host.load <= SMALL.throughput
            assert host.load <= host.cap() or len(host.jobs) == 1
        now += 1
        assert now < 100_000
    assert all(host.load == 0 and not host.latency for host in scheduler.hosts.values())
    return now


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_capacity_is_never_exceeded_all_run_and_names_of_engines_mean_nothing(seed):
    def jobs(draw: random.Random) -> list[Job]:
        kinds = [(draw.choice(list(Objective)), draw.randrange(4)) for _ in range(40)]
        return [
            job(n, draw.randint(50, 100 if kind == LATENCY else 900), kind, (bytes([p]), 49) if p else None)
            for n, (kind, p) in enumerate(kinds)
        ]

    seconds = [random.Random(seed).randint(1, 9) for _ in range(40)]
    names = ["a", "b", "c"]
    spans = {
        simulated(random.Random(seed), order, jobs(random.Random(seed)), seconds)
        for order in (names, names[::-1], ["c", "a", "b"])
    }
    assert len(spans) == 1


def test_capacities_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="latency-tokens"):
        Capacity(latency=0)
    with pytest.raises(ConfigError, match="throughput-tokens"):
        Capacity(latency=100, throughput=50)


def test_keys_differ_with_model_adapter_tokenizer_and_salt_and_not_with_borders():
    ids = list(range(100))
    whole = Keys("m", None, "t", None).at(ids, [100])
    assert Keys("m", None, "t", None).at(ids, [40, 100])[-1] == whole[0]
    changes = (("n", None, "t", None), ("m", "a", "t", None), ("m", None, "u", None), ("m", None, "t", "s"))
    others = [Keys(*change) for change in changes]
    assert len({keys.at(ids, [100])[0].key for keys in others} | {whole[0].key}) == 5
    assert Keys("m", None, "t", None).at([*ids[:99], 0], [100])[0].key != whole[0].key
    assert [b.tokens for b in Keys("m", None, "t", None).at(ids, [LEAST - 1, LEAST, LEAST, 50])] == [LEAST, 50]
