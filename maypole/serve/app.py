"""The routes: OpenAI's, as existing clients call them. Knows nothing about how answers are made."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maypole import __version__
from maypole.core.errors import UserError
from maypole.serve.bodies import ChatBody, CompletionBody, Detokenize, Embeddings, LoadAdapter, Tokenize, parsed
from maypole.serve.generating import ClientGone, Generating
from maypole.serve.guard import ApiError, Guard, Queue, from_user_error, read_json
from maypole.serve.metrics import Metrics

if TYPE_CHECKING:
    from maypole.engine.engine import Engine

log = logging.getLogger(__name__)

LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server: body in bytes, tokens of a completion, seconds of an answer, sequences that may wait."""

    max_body_bytes: int = 4 * 2**20
    max_tokens: int | None = None
    timeout: float = 600.0
    max_queue: int = 256


class State:
    """What may change while a server runs."""

    def __init__(self) -> None:
        self.draining = False
        self.created = int(time.time())


def create_app(
    engine: "Engine",
    *,
    name: str,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] = LOCAL,
    allow_dynamic: bool = False,
) -> FastAPI:
    """The application that serves `engine` as the model `name`, and its adapters as models of their own names.

    `keys` are those a client needs one of, none: no key; `hosts` are the names it may be addressed by, "*" for any.
    """
    limits, state = limits or Limits(), State()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.maypole = state
    metrics = Metrics(engine.stats)
    queue = Queue(limits.max_queue, lambda: engine.stats()["running"])
    work = Generating(engine, queue, metrics, max_tokens=limits.max_tokens, timeout=limits.timeout)

    def served(model: str) -> str | None:
        """The adapter behind a model's name."""
        if model == name:
            return None
        if model in engine.adapters:
            return model
        raise ApiError(404, "no such model is served; see /v1/models", "model", "model_not_found")

    async def body_of(kind: Any, request: Request) -> Any:
        body, unknown = parsed(kind, await read_json(request, limits.max_body_bytes))
        if unknown:
            # A header is one line of ASCII, whatever the names are.
            request.state.warning = json.dumps([field[:64] for field in unknown[:16]])
        if getattr(body, "model", None):
            request.state.model = body.model if body.model == name or body.model in engine.adapters else ""
        return body

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await body_of(CompletionBody, request)
        return await work.completions(body, served(body.model), request)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await body_of(ChatBody, request)
        return await work.chat(body, served(body.model), request)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await body_of(Embeddings, request)
        adapter = served(body.model)
        with queue.admitted(len(body.inputs)):
            ids = await asyncio.to_thread(lambda: [engine.encode(text) for text in body.inputs])
            found = await work.wait(asyncio.to_thread(engine.embed, ids, adapter=adapter), request)
        if body.dimensions is not None:
            if body.dimensions > found.shape[1]:
                raise ApiError(400, f"this model has {found.shape[1]} dimensions", "dimensions")
            found = found[:, : body.dimensions]
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        tokens = sum(map(len, ids))
        metrics.count(tokens, 0, 0)
        data = [{"object": "embedding", "index": i, "embedding": _vector(v, body.encoding_format)}
                for i, v in enumerate(found)]  # fmt: skip
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": used})

    def card(model: str) -> dict[str, Any]:
        return {
            "id": model, "object": "model", "created": state.created, "owned_by": "maypole",
            "parent": None if model == name else name, "max_model_len": engine.max_length,
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [card(model) for model in (name, *engine.adapters)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Any:
        served(model)
        return card(model)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        body = await body_of(Tokenize, request)
        ids = await asyncio.to_thread(engine.encode, body.prompt if body.messages is None else body.messages)
        return {"tokens": ids, "count": len(ids), "max_model_len": engine.max_length}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Any:
        body = await body_of(Detokenize, request)
        return {"prompt": engine.tokenizer.decode(body.tokens)}

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request) -> Any:
        if not allow_dynamic:
            raise ApiError(404, "adapters cannot be loaded here; the server needs --allow-dynamic")
        body = await body_of(LoadAdapter, request)
        if body.lora_name == name:
            raise ApiError(400, "this is the base model's name", "lora_name")
        version = await asyncio.to_thread(engine.update, body.lora_path, body.lora_name)
        return {"lora_name": body.lora_name, "version": version}

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}) if engine.alive else _down("the engine's loop died")

    @app.get("/live")
    async def live() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        if state.draining:
            return _down("draining")
        return JSONResponse({"status": "ok"}) if engine.alive else _down("the engine's loop died")

    @app.get("/version")
    async def version() -> Any:
        return {"version": __version__}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    _errors(app)
    app.add_middleware(Guard, hosts=hosts, keys=keys, draining=lambda: state.draining)
    app.add_middleware(Account, metrics=metrics)
    return app


class Account:
    """Counts and logs every request: method, path, status, model, seconds; nothing of what it says."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, begun = time.monotonic(), 499, False
        state = scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                if "warning" in state:
                    header = (b"x-ignored-fields", state["warning"].encode("ascii"))
                    message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # its message may quote the request: only its kind is told
            log.error("a request failed: %s", type(error).__name__)
            log.debug("its traceback", exc_info=error)
            if not begun:
                await ApiError(500, "the server failed at this request").response(scope, receive, noted)
        finally:
            route = scope.get("route")
            model = state.get("model", "")
            self._metrics.requests.labels(status, model).inc()
            fields = {"method": scope["method"], "route": getattr(route, "path", None), "status": status,
                      "model": model, "seconds": round(time.monotonic() - begin, 4)}  # fmt: skip
            log.info("%s", json.dumps(fields))


def _errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    def handler(answer: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            return answer(error).response

        return handle

    def routed(error: HTTPException) -> ApiError:
        return ApiError(error.status_code, str(error.detail))

    app.add_exception_handler(ApiError, handler(lambda error: error))
    app.add_exception_handler(UserError, handler(from_user_error))
    app.add_exception_handler(HTTPException, handler(routed))
    app.add_exception_handler(ClientGone, handler(lambda error: ApiError(499, "the client left")))


def _down(why: str) -> Response:
    return JSONResponse({"status": why}, 503)


def _vector(vector: np.ndarray, form: str) -> Any:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
