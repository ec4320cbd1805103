"""An engine that says what a test wants, when it wants: tokenizer, requests and server are the real ones."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence

from maypole.engine import Engine
from maypole.engine.adapters import Adapter
from maypole.engine.request import Chunk, Output, Request, Usage
from tests.engine.engine_fixtures import lm_of

Script = Callable[[str, str | None], Sequence["str | threading.Event | Exception"]]
"""(prompt, adapter) -> what is said piece by piece; an event is waited for, an exception ends the answer."""


class ScriptedEngine(Engine):
    """`running` counts answers that have begun and not ended."""

    def __init__(self, script: Script, adapters: tuple[str, ...] = (), *, template: bool = True) -> None:
        super().__init__(lm_of(max_position_embeddings=100_000))
        self.script, self.running = script, 0
        for name in adapters:
            self.adapters.put(name, Adapter(name, None, {}, {}))
        self.asked: list[Request] = []
        if not template:
            self.tokenizer.chat_template = None

    def stats(self) -> dict[str, int]:
        kept = {"running": self.running, "kv_bytes": 31, "kv_budget": 100}
        return {**super().stats(), **kept}

    async def streams(
        self, requests: Sequence[Request], *, attentive: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[list[tuple[int, Chunk]], None]:
        (request,) = requests
        self.asked.append(request)
        assert isinstance(request.prompt, list)
        prompt = self.tokenizer.decode(request.prompt, skip_special_tokens=True)
        said: list[str] = []
        self.running += 1
        try:
            for piece in self.script(prompt, request.adapter):
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, threading.Event):
                    while not piece.is_set():
                        await asyncio.sleep(0.005)
                    continue
                said.append(piece)
                yield [(0, Chunk(piece, [5], [-1.0]))]
            usage = Usage(len(request.prompt), len(said), len(request.prompt) // 2)
            ids = [5] * len(said)
            output = Output("".join(said), ids, [-1.0] * len(said), "stop", usage, 0, request)
            yield [(0, Chunk("", [], [], output=output))]
        finally:
            self.running -= 1
