"""Whatever the schedule (chunks, shared prefixes, company, making way, leaving early), a sequence says the same."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.engine import Engine, EngineConfig, Request, Sampling, scheduler, step_plan
from tests.engine.engine_fixtures import check, hf_greedy, hf_logprobs, lm_of, random_ids, with_adapters
from tests.tiny_models import FAMILIES

NEW = 14
GREEDY = Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True)


def prompts(seed: int = 0) -> list[list[int]]:
    """Beginnings in common at several depths, and none."""
    trunk, branch, *ends = random_ids([50, 30, 1, 7, 20, 3, 60, 90], seed)
    return [trunk + branch + e for e in ends[:3]] + [trunk + e for e in ends[2:4]] + [trunk, trunk, *ends[4:]]


def said(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [o.token_ids for o in engine.generate(requests)]


def stepped(engine: Engine, requests: list[Request], arrivals: Iterable[int], then: Any = None) -> list[list[int]]:
    """Run step by step, request i from step arrivals[i] on, with every invariant checked after each."""
    scheduler = engine._generator()
    made = [engine._sequences([r])[0] for r in requests]
    due = sorted(zip(arrivals, range(len(made))))
    for step in range(5000):
        while due and due[0][0] <= step:
            scheduler.submit([made[due.pop(0)[1]]])
        if then is not None:
            then(step, made)
        scheduler.step()
        check(scheduler)
        if not due and all(s.done for s in made):
            return [s.generated for s in made]
    raise AssertionError("a request was starved")


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_shared_prefixes_and_making_way_leave_every_familys_tokens_alone(family: str):
    lm = lm_of(family)
    wanted = [hf_greedy(lm.model, p, NEW) for p in prompts()]
    requests = [Request(p, Sampling(max_tokens=NEW, temperature=0.0)) for p in prompts()]
    per_token = Engine(lm)._generator().memory.bytes_per_token
    for config in (
        EngineConfig(max_batch_tokens=7),
        EngineConfig(max_batch_tokens=64, max_seqs=4),
        EngineConfig(kv_bytes=per_token * 300, max_batch_tokens=40),
        EngineConfig(deterministic=True, max_seqs=4),
    ):
        engine = Engine(lm, config)
        assert stepped(engine, requests, range(len(requests))) == wanted, config
        again = engine.generate(requests)
        assert [o.token_ids for o in again] == wanted, config
        for prompt, output in zip(prompts(), again):
            error = np.subtract(output.logprobs, hf_logprobs(lm.model, prompt, output.token_ids))
            assert np.abs(error).max() < 1e-5


def test_short_memory_makes_the_youngest_start_again_and_nobody_else():
    lm = lm_of("qwen3")
    requests = [Request(p, Sampling(max_tokens=100, temperature=0.0, ignore_eos=True)) for p in random_ids([40] * 6)]
    wanted = said(Engine(lm), requests)
    per_token = Engine(lm)._generator().memory.bytes_per_token
    engine = Engine(lm, EngineConfig(kv_bytes=per_token * 64 * 6))
    assert stepped(engine, requests, [0] * 6) == wanted
    assert engine.stats()["preemptions"] > 0
    assert engine.stats()["kv_bytes"] <= per_token * 64 * 6


def test_a_prompt_seen_before_is_read_from_the_cache_until_memory_is_wanted():
    lm = lm_of()
    engine = Engine(lm)
    first, second = random_ids([60, 60], seed=9)
    turn = engine.generate([Request(first, GREEDY)])[0]
    more = first + turn.token_ids + [7, 8]
    following = engine.generate([Request(more, GREEDY)])[0]
    assert following.usage.cached_tokens == 60 + NEW - 1
    assert following.token_ids == said(Engine(lm), [Request(more, GREEDY)])[0]
    per_token = engine._generator().memory.bytes_per_token
    small = Engine(lm, EngineConfig(kv_bytes=per_token * 260))
    small.generate([Request(first, GREEDY)])
    small.generate([Request(p, GREEDY) for p in random_ids([60, 60, 60], seed=10)])
    assert small.generate([Request(second, GREEDY)])[0].usage.cached_tokens == 0
    assert small.generate([Request(first, GREEDY)])[0].token_ids == turn.token_ids


@pytest.mark.parametrize(("more", "tokens"), [(70, 4), (8, 70)])
def test_a_prefix_that_takes_the_room_of_what_follows_it_makes_way(more: int, tokens: int):
    """It fits where it begins anew, not beside what is kept of it: at once, or when it has grown."""
    lm = lm_of()
    first, rest = random_ids([60, more], seed=11)
    per_token = Engine(lm)._generator().memory.bytes_per_token
    engine = Engine(lm, EngineConfig(kv_bytes=per_token * 150))
    engine.generate([Request(first, Sampling(max_tokens=4, temperature=0.0, ignore_eos=True))])
    assert engine.stats()["prefix_tokens"] > 60
    longer = Request(first + rest, Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True))
    assert stepped(engine, [longer], [0]) == said(Engine(lm), [longer])


def test_a_prompt_in_the_making_is_waited_for_rather_than_read_twice():
    engine = Engine(lm_of(), EngineConfig(max_batch_tokens=32))
    trunk, *ends = random_ids([200, 5, 6, 7], seed=3)
    outputs = engine.generate([Request(trunk + e, GREEDY) for e in ends])
    assert [o.usage.cached_tokens for o in outputs] == [0, 200, 200]


@pytest.mark.parametrize("shared", [200, 30], ids=["in a shorter row", "in the same row"])
def test_who_read_a_shared_beginning_first_reads_it_from_the_cache_too(shared: int):
    lm = lm_of()
    engine = Engine(lm)
    trunk, *ends = random_ids([shared, 60, 6, 7], seed=3)
    requests = [Request(trunk + e, Sampling(max_tokens=30, temperature=0.0, ignore_eos=True)) for e in ends]
    seen = []

    def look(step: int, made: list[Any]) -> None:
        if all(s.generated and not s.done for s in made):
            seen.append(({s.base for s in made}, made[0].slots.length))

    wanted = [said(Engine(lm), [r])[0] for r in requests]
    assert stepped(engine, requests, [0, 0, 0], look) == wanted
    assert seen
    assert all(found == ({shared}, 128) for found in seen)


def _conversations(engine: Engine) -> list[Request]:
    """Two that began alike (30 tokens) and have said something since, each with a further turn of 30 tokens to come."""
    trunk, *histories = random_ids([30, 40, 50], seed=5)
    turns = [trunk + history for history in histories]
    answers = [engine.generate([Request(turn, GREEDY)])[0].token_ids for turn in turns]
    long = Sampling(max_tokens=30, temperature=0.0, ignore_eos=True)
    return [Request(turn + answer + [7, 8], long) for turn, answer in zip(turns, answers)]


def test_what_nobody_else_reads_of_a_known_beginning_is_copied_into_the_row():
    lm = lm_of()
    engine = Engine(lm)
    requests = _conversations(engine)
    bases = []

    def look(step: int, made: list[Any]) -> None:
        bases.append([(s.base, s.cached) for s in made if s.started is not None and not s.done])

    assert stepped(engine, requests, [0, 5], look) == [said(Engine(lm), [r])[0] for r in requests]
    assert bases[1] == [(0, 30 + 40 + NEW - 1)]
    assert [(30, 30 + 40 + NEW - 1), (30, 30 + 50 + NEW - 1)] in bases


def test_who_comes_to_a_copied_beginning_reads_it_from_the_cache_together_with_the_first():
    lm = lm_of()
    engine = Engine(lm)
    request = _conversations(engine)[0]
    bases = []

    def look(step: int, made: list[Any]) -> None:
        bases.append([s.base for s in made if s.started is not None and not s.done])

    assert stepped(engine, [request, request], [0, 5], look) == said(Engine(lm), [request]) * 2
    assert bases[1] == [0]
    assert bases[7][0] == bases[7][1] >= 30 + 40 + NEW - 1


@pytest.mark.parametrize("later", [1, 7], ids=["while it is read", "while it is answered"])
def test_a_beginning_that_somebody_at_work_has_read_is_not_read_again(later: int):
    engine = Engine(lm_of())
    trunk, *ends = random_ids([100, 20, 6], seed=3)
    requests = [Request(trunk + e, Sampling(max_tokens=30, temperature=0.0, ignore_eos=True)) for e in ends]
    cached = []

    def look(step: int, made: list[Any]) -> None:
        cached.append([s.base for s in made])

    assert stepped(engine, requests, [0, later], look) == [said(Engine(engine.lm), [r])[0] for r in requests]
    assert [100, 100] in cached


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_random_schedules_lose_nothing_and_change_nothing(data: st.DataObject):
    lm = with_adapters(lm_of(data.draw(st.sampled_from(["llama", "mistral", "gemma2", "gpt2"]))), "a", "b")
    count = data.draw(st.integers(3, 9))
    texts = [data.draw(st.sampled_from(prompts(1))) for _ in range(count)]
    names = [data.draw(st.sampled_from(["a", "b", ""])) for _ in range(count)]
    drawn = [Sampling(max_tokens=data.draw(st.integers(1, 40)), temperature=data.draw(st.sampled_from([0.0, 1.0])),
                      seed=i, ignore_eos=True) for i in range(count)]  # fmt: skip
    requests = [Request(p, s, adapter=n) for p, s, n in zip(texts, drawn, names)]
    wanted = [said(Engine(lm), [r])[0] for r in requests]
    per_token = Engine(lm)._generator().memory.bytes_per_token
    config = EngineConfig(
        max_seqs=data.draw(st.integers(1, 5)),
        max_batch_tokens=data.draw(st.sampled_from([3, 33, 500])),
        kv_bytes=per_token * data.draw(st.sampled_from([260, 500, 5000])),
        fast_path=data.draw(st.sampled_from(["auto", False])),
        deterministic=data.draw(st.booleans()),
    )
    leaving = data.draw(st.dictionaries(st.integers(0, 30), st.integers(0, count - 1), max_size=2))

    def leave(step: int, made: list[Any]) -> None:
        if step in leaving and not made[leaving[step]].done:
            made[leaving[step]].ended = "cancelled"

    engine = Engine(lm, config)
    found = stepped(engine, requests, [data.draw(st.integers(0, 12)) for _ in range(count)], leave)
    for i, (ours, theirs) in enumerate(zip(found, wanted)):
        assert ours == (theirs[: len(ours)] if i in leaving.values() else theirs)
    # Now their beginnings are known, and read by nobody, one or several.
    assert stepped(engine, requests, [data.draw(st.integers(0, 12)) for _ in range(count)]) == wanted
    assert engine.stats()["kv_tokens"] == 0


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_deterministic_numbers_are_the_same_to_the_bit_in_any_company(
    family: str, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scheduler, "AHEAD", 32)  # so that they grow out of their rows
    lm = lm_of(family)
    per_token = Engine(lm)._generator().memory.bytes_per_token
    requests = [
        Request(p, Sampling(max_tokens=50, temperature=0.8, seed=i, ignore_eos=True))
        for i, p in enumerate(random_ids([40, 20, 33, 50, 25]))
    ]
    alone = Engine(lm, EngineConfig(deterministic=True))
    wanted = [(o.token_ids, o.logprobs) for r in requests for o in alone.generate([r])]
    for config, order in (
        (EngineConfig(deterministic=True), 1),
        (EngineConfig(deterministic=True), -1),
        (EngineConfig(deterministic=True, kv_bytes=per_token * 64 * 4), 1),
    ):
        engine = Engine(lm, config)
        found = engine.generate(requests[::order])[::order]
        assert [(o.token_ids, o.logprobs) for o in found] == wanted
    assert engine.stats()["preemptions"] > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_keys_read_in_order_give_the_same_tokens(family: str, monkeypatch: pytest.MonkeyPatch):
    lm = lm_of(family)
    begin = random_ids([40])[0]
    prompts = [*random_ids([5, 30, 17]), *([*begin, *ids] for ids in random_ids([3, 9]))]
    requests = [Request(p, Sampling(max_tokens=30, temperature=0.0, ignore_eos=True)) for p in prompts]
    wanted = Engine(lm).generate(requests)
    monkeypatch.setattr(step_plan, "MUCH", 0)
    for found, one in zip(Engine(lm).generate(requests), wanted):
        assert found.token_ids == one.token_ids
        assert found.logprobs == pytest.approx(one.logprobs, abs=1e-5)
