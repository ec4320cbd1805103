import asyncio
import threading
from contextlib import aclosing

import pytest

from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.engine.mailbox import Mailbox
from maypole.engine.sequence import Sequence as Running
from maypole.engine.worker import Turnstile
from tests.engine.engine_fixtures import lm_of, random_ids

LONG = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)


def test_what_still_waits_when_its_time_is_over_ends_without_a_token():
    engine = Engine(lm_of(), EngineConfig(max_seqs=1))
    late, good = engine.generate([Request("abc", LONG, timeout=0.0), Request("abc", LONG, timeout=1000.0)])
    assert (late.finish_reason, late.token_ids, late.text) == ("timeout", [], "")
    assert (good.finish_reason, len(good.token_ids)) == ("length", 40)
    assert engine.stats()["waiting"] == 0


def test_time_that_is_over_ends_a_running_sequence_at_the_next_step_and_nobody_else(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    alone = engine.generate([Request("b", LONG)])[0].token_ids

    async def both() -> tuple[list, list[int]]:
        other = asyncio.ensure_future(engine.agenerate([Request("b", LONG)]))
        chunks = []
        async with aclosing(engine.stream(Request("abc", Sampling(max_tokens=400, ignore_eos=True), timeout=1e9))) as s:
            async for chunk in s:
                chunks.append(chunk)
                monkeypatch.setattr(Running, "expired", lambda self, now: self.request.timeout is not None)
        return chunks, (await other)[0].token_ids

    chunks, undisturbed = asyncio.run(both())
    last = chunks[-1].output
    assert last is not None
    assert last.finish_reason == "timeout"
    assert last.token_ids == [token for chunk in chunks for token in chunk.token_ids]
    assert 1 <= len(last.token_ids) < 400
    assert undisturbed == alone
    assert engine.stats()["kv_tokens"] == 0


def test_an_output_says_how_long_it_waited_to_start(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of(), EngineConfig(max_seqs=1))
    clock = iter(range(10**6))
    monkeypatch.setattr("maypole.engine.scheduler.time.monotonic", lambda: float(next(clock)))
    first, second = engine.generate([Request("abc", LONG), Request("abd", LONG)])
    assert second.queued - first.queued >= 40


def test_streams_of_several_requests_come_together_each_as_it_is_alone():
    engine = Engine(lm_of())
    sampling = Sampling(max_tokens=12, seed=3, n=2, ignore_eos=True)
    requests = [Request(prompt, sampling) for prompt in random_ids([5, 9, 30])]
    expected = engine.generate(requests)

    async def collected() -> list:
        return [found async for turn in engine.streams(requests) for found in turn]

    outputs = {(at, c.index): c.output for at, c in asyncio.run(collected()) if c.output is not None}
    assert [outputs[at, i].token_ids for at in range(3) for i in range(2)] == [o.token_ids for o in expected]


def test_a_mailbox_wakes_its_reader_once_for_all_that_came():
    async def read() -> list[list[int]]:
        box: Mailbox[int] = Mailbox(asyncio.get_running_loop())
        found = []
        for burst in ([1, 2, 3], [4], [5, 6]):
            await asyncio.to_thread(lambda burst=burst: [box.put(item) for item in burst])
            found.append(await box.arrived())
        return found

    assert asyncio.run(read()) == [[1, 2, 3], [4], [5, 6]]


def test_who_waits_for_the_engine_comes_before_who_just_left_it():
    lock, order = Turnstile(), []

    def other() -> None:
        with lock:
            order.append("other")

    waiting = threading.Thread(target=other)
    with lock:
        waiting.start()
        while not lock._next.locked():
            pass
        with lock:  # its owner may
            order.append("owner")
    with lock:
        order.append("owner again")
    waiting.join()
    assert order == ["owner", "other", "owner again"]
