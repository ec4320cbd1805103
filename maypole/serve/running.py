"""A web server that answers what is under way before it ends. Knows nothing about what it answers."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from maypole.core.errors import UserError

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept: longer than clients (httpx 5, aiohttp 15) and load balancers (60) keep
theirs, so that no request is sent on a connection that is being closed."""


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT refuses what is new and waits `drain` seconds for the rest, which are then given up;
    the second ends at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain: float) -> None:
        super().__init__(config)
        self._ending, self._drain = app.state.ending, drain

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's: the signals are answered by ending well, not raised again afterwards."""
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self._ending.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            listening = self.servers[0].sockets[0].getsockname()
            sys.stderr.write(f"serving at http://{listening[0]}:{listening[1]}/v1\n")
            sys.stderr.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._drain, self._ending.expire)
        await super().shutdown(sockets)
        timer.cancel()


class Protocol(H11Protocol):
    """Closes connections whose client takes more than `header_timeout` seconds to say what it wants."""

    header_timeout = 30.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._timer is None:
            self._watch()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def config_of(app: FastAPI, *, host: str, port: int, header_timeout: float = 30.0) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    protocol = type("Protocol", (Protocol,), {"header_timeout": header_timeout})
    return uvicorn.Config(
        app, host=host, port=port, http=protocol, ws="none", loop="asyncio", log_config=None, access_log=False,
        lifespan="off", server_header=False, timeout_keep_alive=KEEP_ALIVE,
    )  # fmt: skip


def run(app: FastAPI, *, host: str, port: int, drain: float, header_timeout: float) -> None:
    """Serve until a signal comes; returns when everything is answered, or given up after `drain` seconds."""
    _show_requests()
    config = config_of(app, host=host, port=port, header_timeout=header_timeout)
    # Should an answer hold on although it was given up, it is cut off.
    config.timeout_graceful_shutdown = int(drain) + 5
    try:
        Server(config, app, drain).run()
    except SystemExit as error:  # uvicorn's answer to an address that is taken
        raise UserError(f"cannot listen at {host}:{port}", "--port", "a free port") from error


@contextmanager
def in_thread(app: FastAPI) -> Iterator[str]:
    """The URL of `app` on this machine alone, at a free port, served by a thread of its own for the block."""
    server = uvicorn.Server(config_of(app, host="127.0.0.1", port=0))
    failed: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="maypole-serve", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise UserError("cannot listen on this machine", "127.0.0.1") from (failed[0] if failed else None)
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _show_requests() -> None:
    """Every answered request becomes a line of JSON on stderr."""
    log = logging.getLogger("maypole.serve.requests")
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(logging.INFO)
    log.propagate = False
