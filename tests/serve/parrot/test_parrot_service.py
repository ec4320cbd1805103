"""The service on virtual engines: what is waited for happens, in the order of the clock and at no cost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from maypole.claims.virtual_engines import Costs, VirtualHost, run_virtually
from maypole.core.errors import UserError
from maypole.engine.request import Sampling
from maypole.serve.parrot.calls import Call, Given, Of, Ref, Value, Wanted
from maypole.serve.parrot.graph import AlreadySet, VariableFailed
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.service import Service, StillWaiting
from maypole.serve.parrot.sessions import Session, SessionLimits, TooMany, Unknown

EACH = Costs(step=1.0, read=0.0, said=0.0, held=0.0)
"""A second a step, so that a task of n tokens takes n seconds."""


def call(tokens: int, *sources: str | int | Ref, **options: Any) -> Call:
    made: dict[str, Given] = {
        f"i{n}": Value(s) if isinstance(s, str) else s if isinstance(s, Ref) else Of(s, "o")
        for n, s in enumerate(sources)
    }
    template = "prompt " + "".join(f"{{{{{n}}}}}" for n in made) + "{{o}}"
    wanted = Wanted(Sampling(max_tokens=tokens), **options)
    return Call(template=template, inputs=made, outputs={"o": wanted}, name="f")


ROOM = Capacity(1000, 10_000)


def hosts(n: int = 1, capacity: Capacity = ROOM) -> list[VirtualHost]:
    return [VirtualHost(f"engine {i}", capacity, EACH) for i in range(n)]


def served(
    work: Callable[[Service], Coroutine[Any, Any, Any]], n: int = 1, limits: SessionLimits | None = None, **options: Any
) -> tuple[Any, float]:
    """What `work` gives, and after how many seconds; nothing may be left behind."""

    async def run() -> Any:
        service = Service(hosts(n, **options), limits=limits)
        found = await work(service)
        for session in list(service.sessions.values()):
            service.close(session)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(load.load == 0 for load in service.scheduler.hosts.values())
        assert not service.scheduler.waiting
        assert not service._waiting
        assert service._characters == 0
        return found

    return run_virtually(run())


def test_a_chain_runs_without_the_client():
    async def work(service: Service) -> str:
        session = service.open()
        tasks = service.submit(session, [call(3), call(2, 0), call(4, 1)])
        return await service.get(session, tasks[-1][0].output, "latency")

    text, seconds = served(work)
    assert text == "xxxx"
    assert seconds == pytest.approx(9.0)


def test_nothing_runs_before_its_batch_ends_and_everything_after_it():
    async def work(service: Service) -> tuple[list[str], list[str]]:
        session = service.open()
        tasks = service.submit(session, [call(3), call(3, 0)])
        before = [t[0].state for t in tasks]
        await asyncio.sleep(1.0)
        return before, [t[0].state for t in tasks]

    assert served(work)[0] == (["waiting", "waiting"], ["running", "waiting"])


def test_a_wish_said_with_the_call_counts_from_the_start():
    async def work(service: Service) -> list[str]:
        session = service.open()
        tasks = service.submit(session, [call(1), call(1), call(2, 0, 1, criteria="latency")])
        return [t[0].objective.name for t in tasks]

    assert served(work)[0] == ["GROUP", "GROUP", "LATENCY"]


def test_a_variable_that_never_gets_a_value_is_named_when_time_is_over():
    async def work(service: Service) -> str:
        session = service.open()
        document = service.variable(session, "document")
        task = service.submit(session, [call(1, Ref(document.id))])[0][0]
        with pytest.raises(StillWaiting, match="set its inputs: document"):
            await service.get(session, task.output, timeout=30)
        service.set(session, document, "late but there")
        with pytest.raises(AlreadySet):
            service.set(session, document, "again")
        with pytest.raises(UserError, match="output of a call"):
            service.set(session, task.output, "mine")
        return await service.get(session, task.output, timeout=30)

    text, seconds = served(work)
    assert text == "x"
    assert seconds == pytest.approx(31.0)


def test_a_transform_that_fails_fails_what_depends_on_it_and_nothing_else():
    async def work(service: Service) -> str:
        session = service.open()
        broken, below, beside = service.submit(
            session, [call(2, transforms=("json_field:/a",)), call(1, 0), call(3, "else")]
        )
        with pytest.raises(VariableFailed, match="depends on o: transform 'json_field:/a': the text is not valid JSON"):
            await service.get(session, below[0].output)
        with pytest.raises(VariableFailed, match=r"^variable o: transform"):
            await service.get(session, broken[0].output)
        return await service.get(session, beside[0].output)

    assert served(work)[0] == "xxx"


def test_an_engine_that_dies_is_replaced_once():
    async def work(service: Service) -> tuple[str, str]:
        session = service.open()
        task = service.submit(session, [call(10)])[0][0]
        await asyncio.sleep(5)
        dead = service.hosts[task.host]
        assert isinstance(dead, VirtualHost)
        dead.kill()
        return await service.get(session, task.output), task.host

    (text, host), seconds = served(work, n=2)
    assert (text, host) == ("x" * 10, "engine 1")
    assert seconds == pytest.approx(15.0)


def test_without_another_engine_its_death_fails_what_depends_on_it():
    async def work(service: Service) -> None:
        session = service.open()
        done = service.submit(session, [call(1)])[0][0]
        await service.get(session, done.output)
        running, following = service.submit(session, [call(10), call(1, 0)])
        await asyncio.sleep(3)
        for host in service.hosts.values():
            assert isinstance(host, VirtualHost)
            host.kill()
        with pytest.raises(VariableFailed, match="depends on o: the engine failed: RuntimeError"):
            await service.get(session, following[0].output)
        assert await service.get(session, done.output) == "x"
        late = service.submit(session, [call(1)]) if service.hosts["engine 0"].alive else None
        assert late is None
        assert running[0].state == "failed"

    served(work)


def test_what_waits_for_room_fails_with_the_last_engine():
    async def work(service: Service) -> None:
        session = service.open()
        tasks = service.submit(session, [call(600), call(600)])
        await asyncio.sleep(1)
        assert [t[0].state for t in tasks] == ["running", "queued"]
        host = service.hosts["engine 0"]
        assert isinstance(host, VirtualHost)
        host.kill()
        with pytest.raises(VariableFailed, match="no engine is left"):
            await service.get(session, tasks[1][0].output)

    served(work, capacity=Capacity(1000, 1000))


def test_a_task_that_fits_no_engine_says_how_much_would():
    async def work(service: Service) -> None:
        session = service.open()
        task = service.submit(session, [call(20_000)])[0][0]
        with pytest.raises(VariableFailed, match=r"needs 20,007 tokens \(at most 10,000 fit an engine\)"):
            await service.get(session, task.output)

    served(work)


def test_a_session_ends_after_its_time_and_with_it_all_it_holds():
    async def work(service: Service) -> None:
        left, used = service.open(ttl=10), service.open(ttl=10)
        service.submit(left, [call(100), call(1, 0)])
        for _ in range(4):
            await asyncio.sleep(6)
            service.use(used)
        assert list(service.sessions.values()) == [used]
        assert not left.working
        with pytest.raises(Unknown, match="has ended"):
            service.submit(left, [call(1)])

    served(work)


def test_closing_a_session_ends_who_waits_and_frees_its_engine():
    async def work(service: Service) -> None:
        session = service.open()
        task = service.submit(session, [call(100)])[0][0]
        waiting = asyncio.ensure_future(service.get(session, task.output))
        await asyncio.sleep(5)
        service.close(session)
        with pytest.raises(Unknown, match="has ended"):
            await waiting

    assert served(work)[1] == pytest.approx(5.0)


def test_a_stream_tells_what_is_said_as_it_is_said():
    async def work(service: Service) -> list[tuple[float, str]]:
        session, found = service.open(), []
        task = service.submit(session, [call(3)])[0][0]
        async for piece in service.stream(session, task.output):
            found.append((asyncio.get_running_loop().time(), piece))
        return found

    assert served(work)[0] == [(1.0, "x"), (2.0, "x"), (3.0, "x")]


def test_watchers_are_told_the_whole_and_then_what_changed():
    async def watching(session: Session) -> list[dict[str, Any]]:
        return [event async for event in session.watch()]

    async def work(service: Service) -> list[dict[str, Any]]:
        session = service.open()
        tasks = service.submit(session, [call(3), call(2, 0)])
        watcher = asyncio.ensure_future(watching(session))
        await asyncio.sleep(0)
        await service.get(session, tasks[-1][0].output, "latency")
        await asyncio.sleep(0)
        service.close(session)
        return await watcher

    events = served(work)[0]
    assert [event["type"] for event in (events[0], events[-1])] == ["snapshot", "closed"]
    assert all(event["type"] == "changes" for event in events[1:-1])
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    states: dict[str, list[str]] = {}
    for event in events[:-1]:
        for node in event["nodes"]:
            states.setdefault(node["id"], []).append(node["state"])
    assert [list(dict.fromkeys(s)) for s in states.values()] == [
        ["waiting", "queued", "running", "done"]
    ] * 2
    last = events[-2]["totals"]
    assert (last["done"], last["said_tokens"], last["seconds"]) == (2, 5, pytest.approx(5.0))


def test_sessions_tasks_and_texts_are_bounded():
    async def work(service: Service) -> None:
        one, two = service.open(), service.open()
        with pytest.raises(TooMany, match="2 sessions are open"):
            service.open()
        with pytest.raises(TooMany, match="3 tasks at most"):
            service.submit(one, [call(1)] * 4)
        with pytest.raises(TooMany, match="100 characters at most"):
            service.submit(one, [call(1, "x" * 200)])
        service.submit(one, [call(1, "x" * 60)])
        with pytest.raises(TooMany, match="fill the memory"):
            service.submit(two, [call(1, "x" * 60)])
        service.close(one)
        service.submit(two, [call(1, "x" * 60)])

    served(work, limits=SessionLimits(sessions=2, tasks=3, characters=100, all_characters=120))


def test_a_thousand_sessions_at_once():
    async def program(service: Service, n: int) -> str:
        session = service.open()
        tasks = service.submit(session, [call(2, f"{n}"), call(2, f"{n}"), call(3, 0, 1)])
        text = await service.get(session, tasks[-1][0].output, "latency")
        service.close(session)
        return text

    async def work(service: Service) -> list[str]:
        return await asyncio.gather(*(program(service, n) for n in range(1000)))

    found, _ = served(work, n=4)
    assert found == ["xxx"] * 1000


def test_several_outputs_of_a_call_go_on_after_each_other():
    async def work(service: Service) -> tuple[list[str], list[int]]:
        session = service.open()
        wanted = Wanted(Sampling(max_tokens=3))
        made = Call(template="{{a}} x {{b}} y {{c}}", inputs={"a": Value("1")}, outputs={"b": wanted, "c": wanted})
        b, c = service.submit(session, [made])[0]
        return [await service.get(session, t.output) for t in (b, c)], [b.prompt_tokens, c.prompt_tokens]

    assert served(work)[0] == (["xxx", "xxx"], [4, 10])


def test_equal_prompts_share_within_their_scope_only():
    async def work(service: Service) -> list[int]:
        found = []
        for scope in ("session", "session", "key", "key", "public", "public", "call", "call"):
            session = service.open(owner=3)
            made = Call(
                template="a system prompt of some length {{q}} {{o}}", inputs={"q": Value("question")},
                outputs={"o": Wanted(Sampling(max_tokens=1))}, cache_scope=scope,
            )  # fmt: skip
            task = service.submit(session, [made])[0][0]
            await service.get(session, task.output)
            found.append(task.cached_tokens)
        return found

    assert served(work)[0] == [0, 0, 0, 39, 0, 39, 0, 0]
