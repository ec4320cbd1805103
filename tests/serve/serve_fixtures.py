"""A server over a tiny model, in process or on a port."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

from maypole.engine import Engine
from maypole.serve.app import create_app
from tests.engine.engine_fixtures import lm_of, with_adapters

PROMPT = "the quick brown fox"


def app_of(engine: Engine | None = None, **options: Any) -> Any:
    return create_app(engine or Engine(lm_of()), name="tiny", **options)


def call(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, answered without a socket."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def adapted_engine() -> Engine:
    """Adapters a and b over a base that runs by default."""
    return Engine(with_adapters(lm_of(), "a", "b").with_adapter(None))


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of `app` behind a real socket."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
