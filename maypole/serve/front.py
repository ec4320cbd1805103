"""The routes of a server whose replicas answer elsewhere: who may ask is checked here, and the rest is passed on.

What a lost replica had not begun to answer is asked of another; what it had begun ends with an error.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from maypole import __version__
from maypole.serve import page
from maypole.serve.account import Account
from maypole.serve.answers import event
from maypole.serve.app import answer_errors, body_as
from maypole.serve.ending import Ending
from maypole.serve.generating import left
from maypole.serve.guard import OPEN, ApiError, Guard, Limits, Queue, read_json
from maypole.serve.metrics import FrontMetrics
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.routes import add_program_routes
from maypole.serve.parrot.service import Service
from maypole.serve.parrot.sessions import SessionLimits
from maypole.serve.passing import RETRIES, Ask, Call, LostReplica
from maypole.serve.replica_host import ReplicaHost
from maypole.serve.routing import chain_of

log = logging.getLogger(__name__)

ASKED = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize")
READ = ("/v1/models", "/v1/models/{model:path}", "/tokenizer_info", "/openapi.json")
PATIENCE = 10.0
"""Seconds that a replica has to say which adapters it holds."""
NEAREST = ("ready", "host", "loading", "checking", "disk", "draining", "error")
"""States of an adapter, from where a request starts at once to where it cannot."""
Result = TypeVar("Result")


def create_front(
    ask: Ask,
    *,
    name: str,
    limits: Limits,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...],
    running: Callable[[], Mapping[str, int]],
    may_ask: Callable[[str], bool] = lambda adapter: False,
    capacity: Capacity | None = None,
    sessions: SessionLimits | None = None,
) -> FastAPI:
    """The application that has `ask` answer what is served as `name`; `running` are requests under way per replica.

    Programs run here, their calls at the replicas: for adapters that `may_ask` lets through, within a `capacity` for
    all replicas together and what `sessions` may hold.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    metrics = FrontMetrics(running)
    queue = Queue(limits, lambda: 0)
    host = ReplicaHost(ask, name, may_ask=may_ask, places=limits.max_queue, capacity=capacity or Capacity(),
                       lost=metrics.lost.inc)  # fmt: skip
    programs = Service([host], limits=sessions)
    ending = app.state.ending = Ending(programs.close_all)

    async def asked(request: Request) -> Response:
        document = await read_json(request, limits)
        body = json.dumps(document, ensure_ascii=False).encode()
        call = Call(request.method, request.url.path, body=body, chain=chain_of(document, name))
        # Only these routes refuse models that are not served: what others are told is no label.
        model = str(document.get("model", "")) if call.path.startswith("/v1/") else ""
        return Passed(call, model, _completions(document))

    async def read(request: Request) -> Response:
        return Passed(Call(request.method, request.url.path, request.url.query.encode()), "", 1)

    class Passed(Response):
        """An answer that a replica gives."""

        def __init__(self, call: Call, model: str, count: int) -> None:
            self._call, self._model, self._count = call, model, count
            self.background = None

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    if message["status"] == 200:  # a label only once a replica knows it
                        request.state.model = self._model
                    own = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                    message = {**message, "headers": own}
                await send(message)

            with queue.admitted(self._count, request), ending.expiry() as expiry:
                await _pass_on(ask, self._call, request, noted, expiry, limits.timeout, metrics)

    for path in ASKED:
        app.post(path)(asked)
    for path in READ:
        app.get(path)(read)

    @app.get("/live")
    async def live() -> Any:
        return {"status": "ok"}

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}) if running() else JSONResponse({"status": "no replica is up"}, 503)

    @app.get("/ready")
    async def ready() -> Response:
        return JSONResponse({"status": "draining"}, 503) if ending.draining else await health()

    @app.get("/version")
    async def version() -> Any:
        return {"version": __version__}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/adapters")
    async def adapters() -> Any:
        found = await asyncio.gather(*(_read_of(ask, Call("GET", "/v1/adapters", replica=one)) for one in running()))
        return {"object": "list", "data": _merged(dict(zip(running(), found)))}

    async def of_one_engine() -> None:
        what = "adapters cannot be loaded and unloaded before replicas, which take a directory of --adapters when a"
        raise ApiError(501, f"{what} request names it; a server without --ray can (--allow-dynamic)")

    async def body_of(kind: Any, request: Request) -> Any:
        return await body_as(kind, request, limits)

    async def wait(work: Awaitable[Any], request: Request) -> Any:
        gone = asyncio.ensure_future(left(request))
        try:
            with ending.expiry() as expiry:
                return await _first_of(work, gone, expiry, asyncio.get_running_loop().time() + limits.timeout)
        finally:
            gone.cancel()

    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        app.post(path)(of_one_engine)
    app.router.routes.extend(page.routes())
    answer_errors(app)
    add_program_routes(app, programs, body_of, wait, limits)
    public = OPEN.union(page.contents())
    app.add_middleware(Guard, hosts=hosts, keys=keys, draining=lambda: ending.draining, public=public)
    app.add_middleware(Account, metrics=metrics, quiet=public | {"/metrics"})
    return app


async def _read_of(ask: Ask, call: Call) -> list[dict[str, Any]]:
    """The `data` of a list that one replica answers with; nothing where it is gone, too slow or refuses."""
    body, status = b"", 0
    try:
        async with asyncio.timeout(PATIENCE), aclosing(ask(call)) as answer:
            async for messages in answer:
                body += b"".join(message.get("body", b"") for message in messages)
                status = status or next((m["status"] for m in messages if "status" in m), 0)
    except (LostReplica, TimeoutError):
        return []
    return json.loads(body)["data"] if status == 200 else []


def _merged(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row an adapter: as it stands at the replica that has it nearest, and its state at each (`replicas`)."""
    rows: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for replica, adapters in found.items():
        for adapter in adapters:
            rows.setdefault(adapter["id"], []).append((replica, adapter))
    merged = []
    for held in rows.values():
        nearest = min((adapter for _, adapter in held), key=lambda adapter: NEAREST.index(adapter["state"]))
        used = [adapter["last_used"] for _, adapter in held if adapter["last_used"] is not None]
        merged.append({
            **nearest, "last_used": min(used, default=None), "requests": sum(one["requests"] for _, one in held),
            "replicas": {replica: adapter["state"] for replica, adapter in held},
        })  # fmt: skip
    return merged


async def _pass_on(
    ask: Ask, call: Call, request: Request, send: Send, expiry: "asyncio.Future[None]", seconds: float,
    metrics: FrontMetrics,
) -> None:  # fmt: skip
    """Send what a replica answers; another is asked while nothing is sent, and later the answer ends with an error."""
    begun, streamed = False, False
    gone = asyncio.ensure_future(left(request))
    end = asyncio.get_running_loop().time() + seconds + 1  # the replica's own limit comes first
    try:
        for attempt in range(RETRIES + 1):
            try:
                async with aclosing(ask(call)) as answer:
                    while True:
                        for message in await _first_of(anext(answer), gone, expiry, end):
                            if message["type"] == "http.response.start":
                                streamed = (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
                            begun = True
                            await send(message)
                            if message["type"] == "http.response.body" and not message.get("more_body"):
                                return
            except LostReplica:
                metrics.lost.inc()
                if begun or attempt == RETRIES:
                    raise ApiError(503, "the replica that answered is lost; ask again", code="replica_lost") from None
    except ApiError as error:
        if not begun:
            raise
        request.state.status = error.status
        if streamed:
            await send({"type": "http.response.body", "body": event(error.document), "more_body": False})
        else:
            raise
    finally:
        gone.cancel()


async def _first_of(
    work: Awaitable[Result], gone: "asyncio.Future[None]", expiry: "asyncio.Future[None]", end: float
) -> Result:
    """The result of `work`, given up when the client leaves, time is over or the server ends."""
    task = asyncio.ensure_future(work)
    try:
        limit = end - asyncio.get_running_loop().time()
        await asyncio.wait({task, gone, expiry}, timeout=max(limit, 0), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "the client left")
        if expiry.done():
            raise ApiError(503, "the server ended before this answer did", code="draining")
        raise ApiError(408, "not answered in time", code="timeout")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _completions(document: Mapping[str, Any]) -> int:
    """How many completions are asked for, as far as it can be told: what is no number is refused by a replica."""
    n, prompt = document.get("n", 1), document.get("prompt")
    several = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    return several * (n if isinstance(n, int) and n > 0 else 1)
