import asyncio
from dataclasses import replace
from itertools import accumulate

import pytest

from maypole.core.errors import UserError
from maypole.engine import Chunk, Engine, Request, Sampling
from maypole.engine.detokenizer import Detokenizer
from maypole.engine.sequence import Sequence as Running
from tests.engine.engine_fixtures import lm_of, random_ids

LONG = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)


async def _collect(engine: Engine, request: Request) -> list:
    return [chunk async for chunk in engine.stream(request)]


def test_chunks_add_up_to_the_generated_output():
    engine = Engine(lm_of())
    sampled = Sampling(max_tokens=20, seed=2, n=2, ignore_eos=True, stop=["zq"])
    for sampling in (LONG, sampled):
        request = Request("tell me", sampling)
        whole = engine.generate([request])
        chunks = asyncio.run(_collect(engine, request))
        for output in whole:
            mine = [c for c in chunks if c.index == output.index]
            assert "".join(c.text for c in mine) == output.text
            assert [t for c in mine for t in c.token_ids] == output.token_ids
            assert mine[-1].output is not None
            assert mine[-1].output.token_ids == output.token_ids
            assert mine[-1].output.text == output.text


def test_chunks_that_nobody_waits_for_become_one_and_nothing_is_lost():
    engine = Engine(lm_of())

    async def streamed(sampling: Sampling, attention: list[bool]) -> list[Chunk]:
        asked = iter(attention)
        turns = engine.streams([Request("tell me", sampling)], attentive=lambda: next(asked))
        return [chunk async for turn in turns for _, chunk in turn]

    for sampling in (LONG, replace(LONG, logprobs=2), replace(LONG, stop=["zq"]), replace(LONG, stop_token_ids=[0])):
        output = engine.generate([Request("tell me", sampling)])[0]
        for attention in ([False] * 40, [n in (0, 25, 26) for n in range(40)], [n < 7 for n in range(40)]):
            chunks = asyncio.run(streamed(sampling, attention))
            lengths = [len(chunk.token_ids) for chunk in chunks]
            heard = [n + 1 for n, attentive in enumerate(attention) if attentive and n < len(output.token_ids) - 1]
            assert list(accumulate(lengths)) == [*heard, len(output.token_ids)]
            assert "".join(chunk.text for chunk in chunks) == output.text
            assert [value for chunk in chunks for value in chunk.logprobs] == output.logprobs
            last = chunks[-1].output
            assert last is not None
            assert (last.text, last.token_ids) == (output.text, output.token_ids)


def test_leaving_a_stream_frees_its_row():
    engine = Engine(lm_of())

    async def first_only() -> None:
        stream = engine.stream(Request("abc", Sampling(max_tokens=400, ignore_eos=True)))
        async for _ in stream:
            break
        await stream.aclose()
        while engine.stats()["running"]:
            await asyncio.sleep(0)

    asyncio.run(first_only())
    assert engine.stats()["kv_tokens"] == 0
    assert engine.generate([Request("abc", LONG)])[0].finish_reason == "length"


def test_streams_and_calls_run_side_by_side_with_the_answers_they_have_alone():
    engine = Engine(lm_of())
    requests = [Request(p, LONG) for p in random_ids([5, 9, 30, 2])]
    alone = [engine.generate([r])[0].token_ids for r in requests]

    async def all_of_them() -> list:
        both = asyncio.gather(*(_collect(engine, r) for r in requests[:2]))
        return [await engine.agenerate(requests[2:]), await both]

    called, streamed = asyncio.run(all_of_them())
    assert [o.token_ids for o in called] == alone[2:]
    assert [c[-1].output.token_ids for c in streamed] == alone[:2]


def test_a_failing_step_reaches_everyone_who_waits_and_nobody_later(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    engine.generate([Request("a", LONG)])

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "step", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.generate([Request("a", LONG)])
        with pytest.raises(RuntimeError, match="out of memory"):
            asyncio.run(_collect(engine, Request("a", LONG)))
    assert engine.stats()["running"] == 0
    assert len(engine.generate([Request("a", LONG)])[0].token_ids) == 40


def test_a_failure_while_a_text_is_put_together_is_an_error_too(monkeypatch: pytest.MonkeyPatch):
    """By then the sequence has left the cache; it must not be waited for."""
    engine = Engine(lm_of())

    def broken(*args: object) -> str:
        raise RuntimeError("no such token")

    with monkeypatch.context() as patch:
        patch.setattr(Detokenizer, "finish", broken)
        with pytest.raises(RuntimeError, match="no such token"):
            engine.generate([Request("a", LONG), Request("b", LONG)])
    assert len(engine.generate([Request("a", LONG)])[0].token_ids) == 40


def test_who_hears_of_a_failure_finds_nothing_left_running(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    seen: list[dict[str, int]] = []
    real = Running.report

    def report(self: Running) -> None:
        if self.error is not None:
            seen.append(engine.stats())
        real(self)

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Running, "report", report)
    monkeypatch.setattr(engine._runner, "step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(_collect(engine, Request("a", LONG)))
    assert [(s["running"], s["waiting"]) for s in seen] == [(0, 0)]


def test_an_async_call_checks_its_requests_first():
    engine = Engine(lm_of())
    with pytest.raises(UserError, match="no adapter"):
        asyncio.run(engine.agenerate([Request("a", adapter="none")]))
    with pytest.raises(UserError, match="no adapter"):
        asyncio.run(_collect(engine, Request("a", adapter="none")))
