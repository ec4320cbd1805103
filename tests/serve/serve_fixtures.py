"""A server over a tiny model, in process or on a port."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import uvicorn

from maypole.engine import Engine
from maypole.serve.app import create_app
from maypole.serve.running import config_of
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


def events_of(app: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer, which ends as it should."""
    answer = call(app, "POST", path, json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]


def adapted_engine() -> Engine:
    """Adapters a and b over a base that runs by default."""
    return Engine(with_adapters(lm_of(), "a", "b").with_adapter(None))


@contextlib.contextmanager
def running(app: Any, *, send_buffer: int | None = None, **options: Any) -> Iterator[str]:
    """The URL of `app` behind a real socket, on which the kernel keeps so many bytes for slow readers."""
    server = uvicorn.Server(config_of(app, host="127.0.0.1", port=0, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    listening = server.servers[0].sockets[0]
    if send_buffer is not None:  # connections inherit it
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listening.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return as soon as it is so; it has to become so within `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)
