"""Engines whose steps cost what a formula says, on a clock that jumps: hours of serving in seconds, to the bit.

What is measured with them is real: the service, its scheduler and its sessions. Only the engines are not.
"""

import asyncio
import itertools
import selectors
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from maypole.engine.request import Chunk, Output, Request, Sampling, Usage
from maypole.serve.parrot.calls import Tokenize
from maypole.serve.parrot.hosts import Part, Prompt
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.prefixes import Keys

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing: where it would, its clock jumps to what comes next."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


def run_virtually(work: Coroutine[Any, Any, Result]) -> tuple[Result, float]:
    """The result of `work`, and the seconds that it took on its own clock."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work), loop.now


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a step: its own, and a token's that is read, that is said, and that lies in the cache."""

    step: float = 22e-3
    read: float = 0.12e-3
    said: float = 0.05e-3
    held: float = 0.8e-6


@dataclass(slots=True, eq=False)
class _Running:
    prompt: Prompt
    limit: int
    queue: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)
    cached: int = 0
    read: int = 0
    said: int = 0
    gone: bool = False

    @property
    def reads(self) -> bool:
        return self.read < self.prompt.tokens


class VirtualHost:
    """A host of `parrot.hosts` whose tokens are characters; `most_read` tokens are read a step at most.

    With `chunk` a prompt is read in stretches of so many tokens, else whole: while it is, everybody else waits. It has
    all `models`, unless some are named.
    """

    max_length = None

    def __init__(
        self, name: str, capacity: Capacity, costs: Costs = Costs(), *, shares: bool = True, most_read: int = 8000,
        chunk: int | None = None, models: set[str] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.capacity, self.costs, self.shares = name, capacity, costs, shares
        self.models = models
        self.most_read, self.chunk = most_read, chunk
        self.alive = True
        self.loads: list[int] = []
        self._running: list[_Running] = []
        self._waiting: deque[_Running] = deque()
        self._known: set[bytes] = set()
        self._stepping: asyncio.Task[None] | None = None

    def serves(self, model: str | None) -> bool:
        return self.models is None or model is None or model in self.models

    async def read(self, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None) -> Prompt:
        pieces = [part.text.encode() for part in parts]
        ids = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        ends = list(itertools.accumulate(len(piece) for piece in pieces))
        return Prompt("", None, len(ids), Keys("virtual", model, "bytes", salt).at(ids, ends))

    def said(self, output: Output) -> Part:
        return Part(output.text)

    async def run(
        self, prompt: Prompt, sampling: Sampling, model: str | None, salt: str | None, priority: int,
        attentive: Callable[[], bool],
    ) -> AsyncGenerator[list[Chunk], None]:
        mine = _Running(prompt, sampling.max_tokens)
        self._waiting.append(mine)
        if self._stepping is None:
            self._stepping = asyncio.get_running_loop().create_task(self._steps())
        try:
            while True:
                said = await mine.queue.get()
                if not self.alive:
                    raise RuntimeError("the engine is dead")
                output = None
                if said == mine.limit:
                    usage = Usage(prompt.tokens, said, mine.cached)
                    text = "x" * said
                    output = Output(text, [0] * said, [0.0] * said, "length", usage, 0, Request("x", sampling))
                yield [Chunk("x", [0], [0.0], output=output)]
                if output is not None:
                    return
        finally:
            mine.gone = True

    def kill(self) -> None:
        """Everything that runs here fails, and nothing will run again."""
        self.alive = False
        for one in [*self._running, *self._waiting]:
            one.queue.put_nowait(0)

    async def _steps(self) -> None:
        while self.alive:
            self._running = [one for one in self._running if not one.gone]
            self._admit()
            if not self._running:
                break
            self.loads.append(sum(one.prompt.tokens + one.limit for one in self._running))
            speaking = [one for one in self._running if not one.reads]
            budget = self.most_read if self.chunk is None else max(self.chunk - len(speaking), 1)
            read = 0
            for one in [one for one in self._running if one.reads]:
                if read >= budget or (self.chunk is None and read and read + one.prompt.tokens - one.read > budget):
                    break
                count = one.prompt.tokens - one.read
                count = count if self.chunk is None else min(count, budget - read)
                one.read += count
                read += count
                if not one.reads:
                    speaking.append(one)
            costs = self.costs
            held = sum(one.read + one.said - one.cached for one in self._running)
            seconds = costs.step + costs.read * read + costs.said * len(speaking) + costs.held * held
            await asyncio.sleep(seconds)
            for one in speaking:
                one.said += 1
                one.queue.put_nowait(one.said)
                one.gone = one.gone or one.said == one.limit
        self._stepping = None

    def _admit(self) -> None:
        """Start all: how many there are is for who places them to say. Equal beginnings are read by the first only."""
        while self._waiting:
            one = self._waiting.popleft()
            if self.shares:
                known = (b.tokens for b in reversed(one.prompt.boundaries) if b.key in self._known)
                one.cached = one.read = min(next(known, 0), one.prompt.tokens - 1)
                self._known.update(b.key for b in one.prompt.boundaries)
            self._running.append(one)
