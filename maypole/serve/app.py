"""The routes: OpenAI's, as existing clients call them. Knows nothing about how answers are made."""

import asyncio
import base64
import functools
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from maypole import __version__
from maypole.core.errors import UserError
from maypole.engine.request import Usage
from maypole.serve import page
from maypole.serve.account import Account
from maypole.serve.bodies import (
    ChatBody,
    CompletionBody,
    Detokenize,
    Embeddings,
    LoadAdapter,
    Tokenize,
    UnloadAdapter,
    parsed,
)
from maypole.serve.ending import Ending
from maypole.serve.generating import Generating, in_parts
from maypole.serve.guard import OPEN, ApiError, Guard, Limits, Queue, from_user_error, read_json
from maypole.serve.metrics import Metrics
from maypole.serve.openapi import described, takes
from maypole.serve.parrot.hosts import LocalHost
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.routes import add_program_routes
from maypole.serve.parrot.service import Service
from maypole.serve.parrot.sessions import SessionLimits

if TYPE_CHECKING:
    from maypole.engine.engine import Engine

LOCAL = ("localhost", "127.0.0.1", "[::1]")


def create_app(
    engine: "Engine",
    *,
    name: str,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] = LOCAL,
    dynamic: bool = False,
    capacity: Capacity | None = None,
    sessions: SessionLimits | None = None,
) -> FastAPI:
    """The application that serves `engine` as the model `name`, and its adapters as models of their own names.

    `keys` are those a client needs one of, none: no key; `hosts` are the names it may be addressed by, "*" for any;
    with `dynamic` clients may have adapters loaded from the folders that the engine takes them from, and unloaded;
    `capacity` bounds what programs have under way on the engine, `sessions` what they may hold.
    """
    limits, created = limits or Limits(), int(time.time())

    def give_up() -> None:
        programs.close_all()
        threading.Thread(target=engine.close, daemon=True).start()

    ending = Ending(give_up)
    # The page that FastAPI would show its own description with loads from another host.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.ending = ending
    metrics = Metrics(engine.stats, engine.adapters)
    engine.on_step(metrics.step.observe)
    queue = Queue(limits, lambda: engine.stats()["running"])
    work = Generating(engine, queue, metrics, limits, ending)
    host = LocalHost("engine", engine, model=name, capacity=capacity, timeout=limits.timeout)
    programs = Service([host], limits=sessions, on_output=lambda output: metrics.count(output.usage))

    def served(model: str) -> str | None:
        """The adapter behind a model's name."""
        if model == name:
            return None
        if engine.adapters.may_ask(model):
            return model
        raise ApiError(404, "no such model is served; see /v1/models", "model", "model_not_found")

    async def body_of(kind: Any, request: Request) -> Any:
        if not engine.alive:
            raise ApiError(503, "the engine's loop died; the server must be started again", code="unhealthy")
        body = await body_as(kind, request, limits)
        if getattr(body, "model", None):
            request.state.model = body.model if body.model == name or body.model in engine.adapters else ""
        return body

    @app.post("/v1/completions", openapi_extra=takes(CompletionBody))
    async def completions(request: Request) -> Response:
        body = await body_of(CompletionBody, request)
        return await work.completions(body, served(body.model), request)

    @app.post("/v1/chat/completions", openapi_extra=takes(ChatBody))
    async def chat(request: Request) -> Response:
        body = await body_of(ChatBody, request)
        return await work.chat(body, served(body.model), request)

    @app.post("/v1/embeddings", openapi_extra=takes(Embeddings))
    async def embeddings(request: Request) -> Response:
        body = await body_of(Embeddings, request)
        adapter = served(body.model)
        with queue.admitted(1, request):
            ids = await asyncio.to_thread(lambda: [engine.encode(text) for text in body.inputs])
            embed = functools.partial(engine.embed, adapter=adapter)
            found = np.stack(await work.wait(in_parts(embed, ids), request))
        if body.dimensions is not None:
            if body.dimensions > found.shape[1]:
                raise ApiError(400, f"this model has {found.shape[1]} dimensions", "dimensions")
            found = found[:, : body.dimensions]
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        tokens = sum(map(len, ids))
        metrics.count(Usage(tokens, 0))
        data = [{"object": "embedding", "index": i, "embedding": _vector(v, body.encoding_format)}
                for i, v in enumerate(found)]  # fmt: skip
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": used})

    def card(model: str) -> dict[str, Any]:
        return {
            "id": model, "object": "model", "created": created, "owned_by": "maypole",
            "parent": None if model == name else name, "max_model_len": engine.max_length,
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Any:
        adapters = await asyncio.to_thread(lambda: [*engine.adapters])
        return {"object": "list", "data": [card(model) for model in (name, *adapters)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Any:
        served(model)
        return card(model)

    @app.post("/tokenize", openapi_extra=takes(Tokenize))
    async def tokenize(request: Request) -> Any:
        body = await body_of(Tokenize, request)
        if body.messages is not None or body.add_special_tokens:
            ids = await asyncio.to_thread(engine.encode, body.prompt if body.messages is None else body.messages)
        else:
            ids = await asyncio.to_thread(lambda: engine.tokenizer.encode(body.prompt, add_special_tokens=False))
        return {"tokens": ids, "count": len(ids), "max_model_len": engine.max_length}

    @app.post("/detokenize", openapi_extra=takes(Detokenize))
    async def detokenize(request: Request) -> Any:
        body = await body_of(Detokenize, request)
        return {"prompt": engine.tokenizer.decode(body.tokens)}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Any:
        tokenizer = engine.tokenizer
        special = {f"{kind}_token": getattr(tokenizer, f"{kind}_token", None) for kind in ("bos", "eos", "pad", "unk")}
        return {
            "tokenizer_class": type(tokenizer).__name__, "chat_template": getattr(tokenizer, "chat_template", None),
            "model_max_length": engine.max_length, "vocab_size": len(tokenizer), **special,
        }  # fmt: skip

    async def dynamic_body(kind: Any, request: Request) -> Any:
        if not dynamic:
            raise ApiError(404, "adapters cannot be loaded and unloaded here; the server needs --allow-dynamic")
        body = await body_of(kind, request)
        if body.lora_name == name:
            raise ApiError(400, "this is the base model's name", "lora_name")
        return body

    @app.post("/v1/load_lora_adapter", openapi_extra=takes(LoadAdapter))
    async def load_adapter(request: Request) -> Any:
        body = await dynamic_body(LoadAdapter, request)
        try:
            await asyncio.to_thread(engine.adapters.add_allowed, body.lora_name, body.lora_path)
        except UserError as error:
            raise ApiError(400, from_user_error(error).message, "lora_path") from error
        return {"lora_name": body.lora_name, "version": engine.adapters.version(body.lora_name)}

    @app.post("/v1/unload_lora_adapter", openapi_extra=takes(UnloadAdapter))
    async def unload_adapter(request: Request) -> Any:
        body = await dynamic_body(UnloadAdapter, request)
        if body.lora_name not in engine.adapters:
            raise ApiError(404, "no such adapter is served; see /v1/adapters", "lora_name", "model_not_found")
        await asyncio.to_thread(engine.adapters.remove, body.lora_name)
        return {"lora_name": body.lora_name}

    @app.get("/v1/adapters")
    async def adapters() -> Any:
        found = await asyncio.to_thread(engine.adapters.list)
        now = time.time()
        data = [
            {"id": a.id, "object": "adapter", "state": a.state, "rank": a.rank, "bytes": a.bytes, "base": name,
             "sha256": a.sha256, "last_used": None if a.last_used is None else now - a.last_used,
             "requests": a.requests}
            for a in found
        ]  # fmt: skip
        return {"object": "list", "data": data}

    def health_of(*, draining: bool) -> Response:
        """503 once the loop died, has not stepped for too long, or where draining counts."""
        if not engine.alive:
            return JSONResponse({"status": "the engine's loop died"}, 503)
        if engine.silent > limits.stall:
            return JSONResponse({"status": f"no step for {engine.silent:.0f} seconds"}, 503)
        return JSONResponse({"status": "draining"}, 503) if draining else JSONResponse({"status": "ok"})

    @app.get("/health")
    async def health() -> Response:
        return health_of(draining=False)

    @app.get("/live")
    async def live() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        return health_of(draining=ending.draining)

    @app.get("/version")
    async def version() -> Any:
        return {"version": __version__}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(await asyncio.to_thread(metrics.text), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json")
    async def openapi() -> Any:
        return described(app, await asyncio.to_thread(lambda: [name, *engine.adapters]))

    app.router.routes.extend(page.routes())
    answer_errors(app)
    add_program_routes(app, programs, body_of, work.wait, limits)
    public = OPEN.union(page.contents())
    app.add_middleware(Guard, hosts=hosts, keys=keys, draining=lambda: ending.draining, public=public)
    app.add_middleware(Account, metrics=metrics, quiet=public | {"/metrics"})
    return app


async def body_as(kind: Any, request: Request, limits: Limits) -> Any:
    """The body as a `kind`; fields that it has not are ignored, and named in a header of the answer."""
    body, unknown = parsed(kind, await read_json(request, limits))
    if unknown:
        # A header is one line of ASCII, whatever the names are.
        request.state.warning = json.dumps([field[:64] for field in unknown[:16]])
    return body


def answer_errors(app: FastAPI) -> None:
    """Have `app` answer every error in OpenAI's shape."""

    def handler(answer: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            return answer(error).response

        return handle

    def routed(error: HTTPException) -> ApiError:
        return ApiError(error.status_code, str(error.detail))

    app.add_exception_handler(ApiError, handler(lambda error: error))
    app.add_exception_handler(UserError, handler(from_user_error))
    app.add_exception_handler(HTTPException, handler(routed))
    app.add_exception_handler(ClientDisconnect, handler(lambda error: ApiError(499, "the client left")))


def _vector(vector: np.ndarray, form: str) -> Any:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
