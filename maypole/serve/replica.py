"""One replica of a server on a Ray cluster: an engine with its application, asked by method calls instead of sockets.

Knows nothing of the other replicas, nor of who may ask.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.types import Message

from maypole.serve.opening import open_app
from maypole.serve.passing import Call

if TYPE_CHECKING:
    from maypole.serve.verbs import ServeOptions


class Replica:
    """A deployment of Ray Serve."""

    def __init__(self, options: "ServeOptions") -> None:
        import torch

        torch.set_num_threads(options.threads or 1)
        self._engine, self._app = open_app(options, keys=(), hosts=("*",))
        self._stall = options.stall

    def check_health(self) -> None:
        """Raises where Ray should start another in its place."""
        if not self._engine.alive:
            raise RuntimeError("the engine's loop died")
        if self._engine.silent > self._stall * 6:
            raise RuntimeError("the engine does not step")

    def ready(self) -> bool:
        """True: it is built."""
        return True

    async def answer(self, call: Call) -> AsyncGenerator[list[Message], None]:
        """The application's messages, as many at once as there are; closed before its end, the client has left."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": call.method, "scheme": "http",
            "path": call.path, "raw_path": call.path.encode(), "root_path": "", "query_string": call.query,
            "headers": [(b"host", b"replica"), (b"content-type", b"application/json")], "state": {},
        }  # fmt: skip
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        left, read = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": call.body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, said.put)
            finally:
                said.put_nowait(None)

        task = asyncio.ensure_future(run())
        try:
            ended, messages = False, list[Message]()
            while not ended:
                item: Any = await said.get()
                while True:
                    if item is None:
                        ended = True
                    else:
                        messages.append(item)
                    if said.empty():
                        break
                    item = said.get_nowait()
                # The head of an answer waits for its body: until then it can be asked for elsewhere.
                if messages and (ended or messages[-1]["type"] != "http.response.start"):
                    yield messages
                    messages = []
            await task
        finally:
            left.set()
            await asyncio.gather(task, return_exceptions=True)
