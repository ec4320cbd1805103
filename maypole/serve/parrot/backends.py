"""Where a session's calls go: to a service in this process, or to a server. Both mean the same.

Each has an event loop in a thread of its own, on which everything is called. Knows nothing about functions.
"""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

import httpx

from maypole.core.errors import RemoteError, UserError
from maypole.serve.parrot.calls import Call, Criteria
from maypole.serve.parrot.documents import document
from maypole.serve.parrot.graph import AlreadySet, VariableFailed
from maypole.serve.parrot.hosts import Host, LocalHost, RemoteHost
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.service import Service, StillWaiting
from maypole.serve.parrot.sessions import SessionLimits, TooMany, Unknown

KINDS: dict[str, type[UserError]] = {
    "variable_failed": VariableFailed, "already_set": AlreadySet, "still_waiting": StillWaiting, "too_many": TooMany,
    "unknown": Unknown,
}  # fmt: skip
"""The code of a server's error -> what is raised for it here, as it would be in process."""


class Backend(Protocol):
    """What a session asks; all of it runs on `loop`."""

    loop: asyncio.AbstractEventLoop
    closed: bool

    async def submit(self, calls: Sequence[Call], wanted: Sequence[tuple[int, str]] = ()) -> list[list[str]]:
        """The ids of each call's outputs, in the order of its template; of `wanted` (call, name) a `get` follows."""
        ...

    async def variable(self, name: str) -> str: ...
    async def set(self, id: str, text: str) -> None: ...
    async def get(self, id: str, criteria: Criteria, timeout: float | None) -> str: ...
    def stream(self, id: str, criteria: Criteria, timeout: float | None) -> AsyncGenerator[str, None]: ...
    async def graph(self) -> dict[str, Any]: ...
    async def close(self) -> None: ...
    def end(self) -> None:
        """Let go of the loop, if it is this session's alone; nothing is asked afterwards."""
        ...


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Runtime:
    """Engines that sessions share: `Engine`s, URLs of OpenAI-compatible endpoints, or hosts; `capacity` bounds each."""

    def __init__(
        self, engines: Any, *, capacity: Capacity | None = None, limits: SessionLimits | None = None
    ) -> None:  # fmt: skip
        engines = list(engines) if isinstance(engines, list | tuple) else [engines]
        if not engines:
            raise UserError("there is no engine", "engines", "an Engine or the URL of an endpoint")
        self._owned: list[Any] = []
        hosts = [self._host(engine, f"engine {n}", capacity) for n, engine in enumerate(engines)]
        self.service = Service(hosts, limits=limits)
        self._thread = LoopThread("maypole-programs")
        self.loop = self._thread.loop
        self._closed = False

    def session(self, seed: int | None = None) -> "Local":
        """A new session of its service."""
        return Local(self, seed)

    def close(self) -> None:
        """End all sessions; engines that were given stay open."""
        if self._closed:
            return
        self._closed = True
        self._thread.run(self._end())
        self._thread.end()
        for engine in self._owned:
            engine.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def _end(self) -> None:
        working = [work for session in self.service.sessions.values() for work in session.working.values()]
        for session in list(self.service.sessions.values()):
            self.service.close(session)
        await asyncio.gather(*working, return_exceptions=True)

    def _host(self, engine: Any, name: str, capacity: Capacity | None) -> Host:
        if isinstance(engine, str):
            from maypole.engine.remote import RemoteEngine

            engine = RemoteEngine(engine)
            self._owned.append(engine)
        if hasattr(engine, "url"):
            return RemoteHost(name, engine, capacity=capacity)
        return LocalHost(name, engine, capacity=capacity) if hasattr(engine, "streams") else engine


class Local:
    """A session of a service in this process."""

    def __init__(self, runtime: Runtime, seed: int | None) -> None:
        self.loop, self.closed = runtime.loop, False
        self._service = runtime.service

        async def opened() -> Any:
            return self._service.open(seed=seed)

        self._session = asyncio.run_coroutine_threadsafe(opened(), self.loop).result()

    async def submit(self, calls: Sequence[Call], wanted: Sequence[tuple[int, str]] = ()) -> list[list[str]]:
        made = self._service.submit(self._session, calls)
        return [[task.output.id for task in tasks] for tasks in made]

    async def variable(self, name: str) -> str:
        return self._service.variable(self._session, name).id

    async def set(self, id: str, text: str) -> None:
        self._service.set(self._session, self._session.known(id), text)

    async def get(self, id: str, criteria: Criteria, timeout: float | None) -> str:
        return await self._service.get(self._session, self._session.known(id), criteria, timeout)

    async def stream(self, id: str, criteria: Criteria, timeout: float | None) -> AsyncGenerator[str, None]:
        variable = self._session.known(id)
        async with aclosing(self._service.stream(self._session, variable, criteria, timeout)) as pieces:
            async for piece in pieces:
                yield piece

    async def graph(self) -> dict[str, Any]:
        return self._session.snapshot()

    async def close(self) -> None:
        self._service.close(self._session)

    def end(self) -> None:
        pass


class Remote:
    """A session of a `maypole serve` at `url`."""

    def __init__(
        self, url: str, *, api_key: str | None = None, seed: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._thread = LoopThread("maypole-session")
        self.loop, self.closed = self._thread.loop, False
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1") + "/v1"
        timeout = httpx.Timeout(None, connect=10.0)
        self._http = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, transport=transport)
        try:
            opened = self._thread.run(self._ask("POST", "/sessions", json={} if seed is None else {"seed": seed}))
        except BaseException:
            self._thread.end()
            raise
        self._id = opened["session_id"]
        self._arriving: dict[str, asyncio.Future[dict[str, Any] | None]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._http.headers["X-Session-Auth"] = opened["session_auth"]

    async def submit(self, calls: Sequence[Call], wanted: Sequence[tuple[int, str]] = ()) -> list[list[str]]:
        body: dict[str, Any] = {"session_id": self._id, "calls": [document(call) for call in calls]}
        if not wanted:
            return _outputs(await self._ask("POST", "/semantic_calls/batch", json=body))
        body["get"] = [{"call": at, "name": name} for at, name in wanted]
        events = self._events("POST", "/semantic_calls/batch", json=body)  # its values come along, without a trip more
        submitted = await anext(events)
        named = [{p["name"]: p["var_id"] for p in call["parameters"]} for call in submitted["calls"]]
        found = [named[at][name] for at, name in wanted]
        arriving: dict[str, asyncio.Future[dict[str, Any] | None]] = {id: self.loop.create_future() for id in found}
        self._arriving |= arriving
        self._reading.add(reading := self.loop.create_task(self._read(events, arriving)))
        reading.add_done_callback(self._reading.discard)
        return _outputs(submitted)

    async def _read(
        self, events: AsyncGenerator[dict[str, Any], None],
        arriving: dict[str, "asyncio.Future[dict[str, Any] | None]"],
    ) -> None:  # fmt: skip
        """Hand values over as they come; of what does not come is asked again."""
        try:
            async with aclosing(events):
                async for event in events:
                    arriving[event["id"]].set_result(event)
        except (RemoteError, httpx.HTTPError):
            pass
        finally:
            for future in arriving.values():
                if not future.done():
                    future.set_result(None)

    async def variable(self, name: str) -> str:
        return (await self._ask("POST", "/variables", json={"session_id": self._id, "name": name}))["var_id"]

    async def set(self, id: str, text: str) -> None:
        await self._ask("PUT", f"/variables/{id}", json={"value": text})

    async def get(self, id: str, criteria: Criteria, timeout: float | None) -> str:
        if (arriving := self._arriving.get(id)) is not None:
            try:
                event = await asyncio.wait_for(asyncio.shield(arriving), timeout)
            except TimeoutError:
                event = None
                timeout = 0.001  # the server says what is missing
            if event is not None and "error" not in event:
                return event["content"]
            self._arriving.pop(id, None)
        return (await self._ask("GET", f"/variables/{id}", params=_wish(criteria, timeout)))["content"]

    async def stream(self, id: str, criteria: Criteria, timeout: float | None) -> AsyncGenerator[str, None]:
        wish = {**_wish(criteria, timeout), "stream": "true"}
        async with aclosing(self._events("GET", f"/variables/{id}", params=wish)) as events:
            async for event in events:
                if "error" in event:
                    raise _refusal(json.dumps(event), 500)
                if event["text"]:
                    yield event["text"]

    async def graph(self) -> dict[str, Any]:
        return await self._ask("GET", f"/sessions/{self._id}/graph")

    async def close(self) -> None:
        for reading in self._reading:
            reading.cancel()
        try:
            with suppress(Unknown):  # it ended by itself
                await self._ask("DELETE", f"/sessions/{self._id}")
        finally:
            await self._http.aclose()

    def end(self) -> None:
        self._thread.end()

    async def _events(self, method: str, path: str, **options: Any) -> AsyncGenerator[dict[str, Any], None]:
        """What a streamed answer says."""
        async with self._http.stream(method, path, **options) as answer:
            if answer.status_code >= 400:
                await answer.aread()
                raise _refusal(answer.text, answer.status_code)
            async for line in answer.aiter_lines():
                text = line.removeprefix("data: ")
                if line and text != "[DONE]":
                    yield json.loads(text)

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise RemoteError(f"{self._http.base_url}: {type(error).__name__}", retryable=True) from error
        if answer.status_code >= 400:
            raise _refusal(answer.text, answer.status_code)
        return answer.json()


def _outputs(answer: dict[str, Any]) -> list[list[str]]:
    """The ids of each submitted call's outputs."""
    return [[p["var_id"] for p in call["parameters"] if p["is_output"]] for call in answer["calls"]]


def _wish(criteria: Criteria, timeout: float | None) -> dict[str, str]:
    return {"criteria": criteria} | ({} if timeout is None else {"timeout_s": str(timeout)})


def _refusal(text: str, status: int) -> Exception:
    """The error that the service raised, or one that quotes the server."""
    try:
        error = json.loads(text)["error"]
        kind, said, param = error.get("code"), str(error["message"]), error.get("param") or ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return RemoteError(f"the server answered {status}: {text[:200]!r}", retryable=status >= 500)
    if kind == "variable_failed":
        return VariableFailed(param, said)
    if kind in KINDS or status in (400, 404, 409):
        return KINDS.get(kind, UserError)(said, param)
    return RemoteError(f"the server answered {status}: {said}", retryable=status in (408, 429) or status >= 500)
