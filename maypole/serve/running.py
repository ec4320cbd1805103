"""A web server that answers what is under way before it ends. Knows nothing about what it answers."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from maypole.core.errors import UserError


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT refuses what is new and waits for the rest; the second ends at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

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
            self.force_exit = True
        self._app.state.maypole.draining = True
        self.should_exit = True

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            listening = self.servers[0].sockets[0].getsockname()
            sys.stderr.write(f"serving at http://{listening[0]}:{listening[1]}/v1\n")
            sys.stderr.flush()


def run(app: FastAPI, *, host: str, port: int, drain: int) -> None:
    """Serve until a signal comes; returns when everything is answered, or after `drain` seconds."""
    logging.getLogger("maypole.serve").setLevel(logging.INFO)
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=drain,
    )  # fmt: skip
    try:
        Server(config, app).run()
    except SystemExit as error:  # uvicorn's answer to an address that is taken
        raise UserError(f"cannot listen at {host}:{port}", "--port", "a free port") from error
