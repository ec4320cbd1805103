"""What runs completions: an engine in this process, or an endpoint by HTTP, as the service sees them.

A host reads a prompt's pieces (into tokens, where it has the tokenizer) and streams its completion. Knows nothing
about variables, sessions or which host is chosen.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from maypole.core.errors import UnsupportedCapability
from maypole.engine.prefix_tree import Ids
from maypole.engine.request import Chunk, Output, Request, Sampling
from maypole.serve.parrot.calls import Tokenize
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.prefixes import Boundary, Keys

if TYPE_CHECKING:
    from maypole.engine.engine import Engine
    from maypole.engine.remote import RemoteEngine

BORDERS = 8
"""Borders of a prompt at which others may begin to differ: the first so many of its pieces, and its end."""
CHARACTERS = 4
"""Of a token where there is no tokenizer."""
REMEMBERED = 2**22
"""Characters of texts whose tokens are remembered."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt: its text, and its tokens where a model said them."""

    text: str
    ids: Ids | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is continued, as ids where they are known; `boundaries` are beginnings that others may have too."""

    text: str
    ids: Ids | None
    tokens: int
    boundaries: tuple[Boundary, ...]


class Host(Protocol):
    """An engine as the service needs it; `shares` says whether it computes equal beginnings once.

    `max_length` bounds prompt and completion together, where that is known.
    """

    name: str
    capacity: Capacity
    shares: bool

    @property
    def max_length(self) -> int | None: ...
    @property
    def alive(self) -> bool: ...
    def serves(self, model: str | None) -> bool: ...
    async def read(self, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None) -> Prompt: ...
    def said(self, output: Output) -> Part:
        """A completion as a piece of what goes on after it."""
        ...

    def run(
        self, prompt: Prompt, sampling: Sampling, model: str | None, salt: str | None, priority: int,
        attentive: Callable[[], bool],
    ) -> AsyncGenerator[list[Chunk], None]:
        """The completion in chunks, of which only the last has to come while nobody is `attentive`."""
        ...


class LocalHost:
    """`engine` under the name `model`, and its adapters under theirs; `timeout` ends a completion that takes longer."""

    def __init__(
        self, name: str, engine: "Engine", *, model: str | None = None, capacity: Capacity | None = None,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        self.name, self.engine, self.model, self.timeout = name, engine, model, timeout
        self.capacity = capacity or Capacity()
        self.shares, self.max_length = not engine.config.deterministic, engine.max_length
        self._ends = frozenset(engine.lm.end_tokens)
        self._tokenizer = f"{type(engine.tokenizer).__name__} {len(engine.tokenizer)}"
        self._read: OrderedDict[tuple[str, bool], Ids] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def serves(self, model: str | None) -> bool:
        return model is None or model == self.model or model in self.engine.adapters

    async def read(self, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None) -> Prompt:
        adapter = self._adapter(model)
        text = "".join(part.text for part in parts)
        ids, borders = await asyncio.to_thread(self._segments if mode == "segment" else self._rendered, parts, text)
        keys = Keys(self.engine.lm.name, adapter, self._tokenizer, salt)
        found = [boundary for begun, ends in borders for boundary in keys.at(begun, ends)]
        return Prompt(text, ids, len(ids), tuple({b.key: b for b in found}.values()))

    def said(self, output: Output) -> Part:
        ids = list(output.token_ids)
        if isinstance(output.stop_reason, str):  # the string that ended it is among the tokens, not in the text
            return Part(output.text)
        if output.finish_reason == "stop" and ids and (ids[-1] in self._ends or ids[-1] == output.stop_reason):
            ids.pop()
        return Part(output.text, np.asarray(ids, dtype=np.int64))

    async def run(
        self, prompt: Prompt, sampling: Sampling, model: str | None, salt: str | None, priority: int,
        attentive: Callable[[], bool],
    ) -> AsyncGenerator[list[Chunk], None]:
        assert prompt.ids is not None
        request = Request(
            prompt.ids.tolist(), sampling, adapter=self._adapter(model), priority=priority, cache_salt=salt,
            timeout=self.timeout,
        )  # fmt: skip
        async with aclosing(self.engine.streams([request], attentive=attentive)) as turns:
            async for turn in turns:
                yield [chunk for _, chunk in turn]

    def _adapter(self, model: str | None) -> str | None:
        return None if model is None or model == self.model else model

    def _segments(self, parts: Sequence[Part], text: str) -> tuple[Ids, list[tuple[Ids, list[int]]]]:
        """Ids piece by piece, those that were said as they were."""
        first, bos = self._encoded("a", special=True)[:1], self.engine.tokenizer.bos_token_id
        begin = [first] if first[0] == bos else []
        pieces = [part.ids if part.ids is not None else self._encoded(part.text, special=False) for part in parts]
        ids = np.concatenate([*begin, *pieces]).astype(np.int64)
        ends = np.cumsum([len(piece) for piece in pieces]) + sum(map(len, begin))
        return ids, [(ids, _few(ends.tolist()))]

    def _rendered(self, parts: Sequence[Part], text: str) -> tuple[Ids, list[tuple[Ids, list[int]]]]:
        """Ids of the whole text; at a border those of the text up to there, for tokens may straddle it."""
        ids = np.asarray(self.engine.encode(text), dtype=np.int64)
        ends = _few(np.cumsum([len(part.text) for part in parts]).tolist())
        begun = [self._encoded(text[:end], special=True) for end in ends if 0 < end < len(text)]
        return ids, [*((one, [len(one)]) for one in begun), (ids, [len(ids)])]

    def _encoded(self, text: str, *, special: bool) -> Ids:
        """Ids of a text, remembered: programs say the same again and again."""
        with self._lock:
            known = self._read.get((text, special))
        if known is None:
            if special:
                found = self.engine.encode(text)
            else:
                found = self.engine.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            known = np.asarray(found, dtype=np.int64)
            with self._lock:
                if (text, special) not in self._read:
                    self._read[text, special] = known
                    self._characters += len(text)
                while self._characters > REMEMBERED:
                    (forgotten, _), _ = self._read.popitem(last=False)
                    self._characters -= len(forgotten)
        return known


class RemoteHost:
    """An OpenAI-compatible endpoint: prompts go there as text, and it shares beginnings by itself if it does."""

    def __init__(self, name: str, engine: "RemoteEngine", *, capacity: Capacity | None = None) -> None:
        self.name, self.engine = name, engine
        self.capacity = capacity or Capacity()
        self.shares, self.max_length, self.alive = True, None, True

    def serves(self, model: str | None) -> bool:
        return model is None or model in self.engine.models

    async def read(self, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None) -> Prompt:
        return read_as_text(self.engine.url, parts, mode, model, salt)

    def said(self, output: Output) -> Part:
        return Part(output.text)

    async def run(
        self, prompt: Prompt, sampling: Sampling, model: str | None, salt: str | None, priority: int,
        attentive: Callable[[], bool],
    ) -> AsyncGenerator[list[Chunk], None]:
        extended = "extended" in self.engine.capabilities
        request = Request(prompt.text, sampling, adapter=model, cache_salt=salt if extended else None)
        async with aclosing(self.engine.stream(request)) as chunks:
            async for chunk in chunks:
                yield [chunk]


def read_as_text(
    where: str, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None
) -> Prompt:  # fmt: skip
    """A prompt for what reads it elsewhere, its tokens guessed from its length."""
    if mode == "segment":
        raise UnsupportedCapability("an endpoint reads prompts as one text", where, 'tokenize="rendered"')
    pieces = [part.text.encode() for part in parts]
    read = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    found = Keys(where, model, "bytes", salt).at(read, _few(ends))
    few = tuple(replace(b, tokens=b.tokens // CHARACTERS) for b in found)
    return Prompt("".join(part.text for part in parts), None, len(read) // CHARACTERS + 1, few)


def _few(ends: Sequence[int]) -> list[int]:
    """Ascending, each once, the first few and the last."""
    found = sorted(set(ends))
    return found if len(found) <= BORDERS + 1 else [*found[:BORDERS], found[-1]]
