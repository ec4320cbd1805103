"""The routes of programs: sessions, semantic calls, variables and the graph. Knows nothing about how tasks run.

Whoever opened a session may use it: requests carry its secret in the header X-Session-Auth, under the same API key.
"""

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from maypole.core.errors import DataError, RemoteError, UserError
from maypole.serve.answers import DONE, event
from maypole.serve.generating import Events
from maypole.serve.guard import ApiError, Limits, from_user_error
from maypole.serve.openapi import takes
from maypole.serve.parrot.bodies import BatchBody, CallBody, SessionBody, ValueBody, VariableBody
from maypole.serve.parrot.calls import Call, Criteria, Given, Of, Ref
from maypole.serve.parrot.graph import AlreadySet, Task, Variable, VariableFailed
from maypole.serve.parrot.service import Service, StillWaiting
from maypole.serve.parrot.sessions import Session, TooMany, Unknown

BodyOf = Callable[[Any, Request], Awaitable[Any]]
Wait = Callable[[Awaitable[Any], Request], Awaitable[Any]]
_ANSWERS: dict[type[UserError], tuple[int, str]] = {
    VariableFailed: (424, "variable_failed"), AlreadySet: (409, "already_set"), StillWaiting: (408, "still_waiting"),
    TooMany: (429, "too_many"), Unknown: (404, "unknown"),
}  # fmt: skip
"""Error of the service -> status and code."""
_WISH: dict[str, Any] = {
    "parameters": [
        {"name": "criteria", "in": "query", "schema": {"enum": ["latency", "throughput"]}},
        {"name": "timeout_s", "in": "query", "schema": {"type": "number", "exclusiveMinimum": 0}},
        {"name": "stream", "in": "query", "schema": {"type": "boolean"}},
    ]
}
_STREAM: dict[str, Any] = {"parameters": _WISH["parameters"][2:]}


def add_program_routes(app: FastAPI, service: Service, body_of: BodyOf, wait: Wait, limits: Limits) -> None:
    """Let `app` run programs on `service`; `body_of` reads a request, `wait` gives up what nobody waits for."""

    def opened(id: str, request: Request) -> Session:
        session = service.sessions.get(id)
        auth = request.headers.get("x-session-auth", "")
        owner = getattr(request.state, "key", None)
        same = hmac.compare_digest(auth.encode(), (session.auth if session else "").encode())
        if session is None or not same or session.owner != owner:
            raise ApiError(404, "no such session, or not with this X-Session-Auth", "session_id", "unknown")
        service.use(session)
        return session

    def found(id: str, request: Request) -> tuple[Session, Variable]:
        session = opened(id.split("-")[1] if id.count("-") == 2 else "", request)
        return session, session.known(id)

    def submit(session: Session, calls: list[Call]) -> list[dict[str, Any]]:
        most = limits.max_tokens
        for at, call in enumerate(calls):
            for name, wanted in call.outputs.items():
                if most is not None and wanted.sampling.max_tokens > most:
                    raise ApiError(400, f"call {at}: at most {most:,} tokens a completion", name)
        try:
            made = service.submit(session, calls)
        except DataError as error:
            raise ApiError(400, from_user_error(error).message, error.field) from error
        return [_submitted(call, made[at], made) for at, call in enumerate(calls)]

    @app.post("/v1/sessions", openapi_extra=takes(SessionBody))
    async def open_session(request: Request) -> Any:
        body = await body_of(SessionBody, request)
        session = service.open(seed=body.seed, owner=getattr(request.state, "key", None), ttl=body.ttl_s)
        return {"session_id": session.id, "session_auth": session.auth, "ttl_s": session.ttl}

    @app.delete("/v1/sessions/{session_id}")
    async def close_session(session_id: str, request: Request) -> Any:
        service.close(opened(session_id, request))
        return {"session_id": session_id, "deleted": True}

    @app.post("/v1/semantic_calls", openapi_extra=takes(CallBody))
    async def semantic_call(request: Request) -> Any:
        body = await body_of(CallBody, request)
        return submit(opened(body.session_id, request), [body.call])[0]

    @app.post("/v1/semantic_calls/batch", openapi_extra=takes(BatchBody))
    async def semantic_calls(request: Request) -> Any:
        body = await body_of(BatchBody, request)
        session, calls = opened(body.session_id, request), [call.call for call in body.calls]
        if any(one.call >= len(calls) or one.name not in calls[one.call].outputs for one in body.get):
            raise ApiError(400, "an output of a call of this submission", "get")
        made = submit(session, calls)
        if not body.get:
            return {"calls": made}
        ids = [_output_of(made[one.call], one.name) for one in body.get]
        values = _values(service, session, [session.known(id) for id in ids], limits.timeout)
        return Events(event({"calls": made}), values, ExitStack(), limits.timeout)

    @app.post("/v1/variables", openapi_extra=takes(VariableBody))
    async def variable(request: Request) -> Any:
        body = await body_of(VariableBody, request)
        session = opened(body.session_id, request)
        made = service.variable(session, body.name)
        if body.value is not None:
            service.set(session, made, body.value)
        return {"var_id": made.id, "name": made.name}

    @app.put("/v1/variables/{var_id}", openapi_extra=takes(ValueBody))
    async def set_variable(var_id: str, request: Request) -> Any:
        body = await body_of(ValueBody, request)
        session, known = found(var_id, request)
        service.set(session, known, body.value)
        return {"var_id": known.id, "name": known.name}

    @app.get("/v1/variables/{var_id}", openapi_extra=_WISH)
    async def get_variable(var_id: str, request: Request) -> Response:
        session, known = found(var_id, request)
        criteria, timeout, stream = _wish(request.query_params)
        patience = min(timeout or limits.timeout, limits.timeout)
        if not stream:
            await wait(service.get(session, known, criteria, patience), request)
            return JSONResponse(_valued(known))
        events = _told(service, session, known, criteria, patience)
        return Events(b"", events, ExitStack(), patience)

    @app.get("/v1/sessions/{session_id}/graph", openapi_extra=_STREAM)
    async def graph(session_id: str, request: Request) -> Response:
        session = opened(session_id, request)
        if not _wish(request.query_params)[2]:
            return JSONResponse(session.snapshot())
        return Events(b"", _watched(session), ExitStack(), session.ttl)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, UserError)
        return refusal(error).response

    for kind in _ANSWERS:
        app.add_exception_handler(kind, refused)


def refusal(error: UserError) -> ApiError:
    """What the service refused, with the status that says so."""
    for kind, (status, code) in _ANSWERS.items():
        if isinstance(error, kind):
            expected = f" ({error.expected})" if error.expected else ""
            where = error.where.removeprefix("variable ")
            return ApiError(status, f"{error.what}{expected}", where or None, code)
    return from_user_error(error)


async def _told(
    service: Service, session: Session, variable: Variable, criteria: Criteria, timeout: float
) -> AsyncGenerator[bytes, None]:
    """A variable's text as events; an error is the last one."""
    try:
        async with aclosing(service.stream(session, variable, criteria, timeout)) as pieces:
            async for piece in pieces:
                yield event({"text": piece})
    except UserError as error:
        yield event(refusal(error).document)
        return
    except RemoteError as error:
        yield event(ApiError(502, str(error)).document)
        return
    yield event({"text": "", **_valued(variable)}) + DONE


async def _values(
    service: Service, session: Session, variables: list[Variable], timeout: float
) -> AsyncGenerator[bytes, None]:
    """Each variable as an event, once it has a value or never will."""

    async def one(variable: Variable) -> dict[str, Any]:
        wanted = variable.producer.wanted.criteria if variable.producer else None
        try:
            await service.get(session, variable, wanted or "throughput", timeout)
        except UserError as error:
            return {"id": variable.id, **refusal(error).document}
        return _valued(variable)

    waiting = [asyncio.ensure_future(one(variable)) for variable in variables]
    try:
        for found in asyncio.as_completed(waiting):
            yield event(await found)
    finally:
        for work in waiting:
            work.cancel()
    yield DONE


def _output_of(made: Mapping[str, Any], name: str) -> str:
    """The id of an output of a submitted call."""
    return next(p["var_id"] for p in made["parameters"] if p["is_output"] and p["name"] == name)


async def _watched(session: Session) -> AsyncGenerator[bytes, None]:
    async with aclosing(session.watch()) as changes:
        async for change in changes:
            yield event(change)


def _submitted(call: Call, tasks: list[Task], made: list[list[Task]]) -> dict[str, Any]:
    """What a submitted call is known by; an input that is a plain text has no variable."""

    def id_of(given: Given) -> str | None:
        if isinstance(given, Of):
            return next(task.output.id for task in made[given.call] if task.output.name == given.name)
        return given.variable if isinstance(given, Ref) else None

    said = [{"name": name, "is_output": False, "var_id": id_of(given)} for name, given in call.inputs.items()]
    said += [{"name": task.output.name, "is_output": True, "var_id": task.output.id} for task in tasks]
    return {"request_id": tasks[0].id.rpartition("-")[0], "parameters": said}


def _valued(variable: Variable) -> dict[str, Any]:
    """A variable that has a value, what it cost, and when what happened."""
    task = variable.producer
    usage = timings = None
    if task is not None:
        times = task.times
        usage = {
            "prompt_tokens": task.prompt_tokens, "completion_tokens": task.said_tokens,
            "total_tokens": task.prompt_tokens + task.said_tokens,
            "prompt_tokens_details": {"cached_tokens": task.cached_tokens},
        }  # fmt: skip
        begin, now = times.submitted, asyncio.get_running_loop().time()
        marks = {"ready": times.ready, "placed": times.placed, "first_token": times.first, "ended": times.ended}
        timings = {name: None if at is None else round(at - begin, 6) for name, at in marks.items()}
        timings["age"] = round(now - begin, 6)
    return {"id": variable.id, "name": variable.name, "content": variable.content, "usage": usage, "timings": timings}


def _wish(query: Mapping[str, str]) -> tuple[Criteria, float | None, bool]:
    """(criteria, seconds to wait at most, whether as a stream)."""
    criteria, stream = query.get("criteria", "throughput"), query.get("stream", "false")
    if criteria not in ("latency", "throughput"):
        raise ApiError(400, "latency or throughput", "criteria")
    if stream not in ("true", "false"):
        raise ApiError(400, "true or false", "stream")
    if (text := query.get("timeout_s")) is None:
        return criteria, None, stream == "true"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ApiError(400, "a number above 0", "timeout_s")
    return criteria, seconds, stream == "true"
