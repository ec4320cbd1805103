"""The replicas as what runs a front's programs: every task is a completion, and goes where its beginning is known.

A task whose replica is lost begins anew at another: its draws have a seed, so that it says the same again. Knows no
sessions, and no Ray.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from maypole.core.errors import RemoteError, UserError
from maypole.engine.remote_form import body, chunk_of
from maypole.engine.request import Chunk, FinishReason, Output, Request, Sampling, Usage
from maypole.serve.parrot.calls import Tokenize
from maypole.serve.parrot.hosts import Part, Prompt, read_as_text
from maypole.serve.parrot.placement import Capacity
from maypole.serve.passing import RETRIES, Ask, Call, LostReplica
from maypole.serve.routing import chain_of


class ReplicaHost:
    """Replicas that serve `model` and what `may_ask` lets through, `places` tasks at once; `lost` is told of each loss.

    `capacity` is that of all together.
    """

    name, shares, max_length, alive = "replicas", True, None, True

    def __init__(
        self, ask: Ask, model: str, *, may_ask: Callable[[str], bool], places: int, capacity: Capacity,
        lost: Callable[[], None],
    ) -> None:  # fmt: skip
        self.model, self.capacity = model, capacity
        self._ask, self._may_ask, self._lost = ask, may_ask, lost
        self._places = asyncio.Semaphore(places)

    def serves(self, model: str | None) -> bool:
        return model is None or model == self.model or self._may_ask(model)

    async def read(self, parts: Sequence[Part], mode: Tokenize, model: str | None, salt: str | None) -> Prompt:
        return read_as_text("replicas", parts, mode, model or self.model, salt)

    def said(self, output: Output) -> Part:
        return Part(output.text)

    async def run(
        self, prompt: Prompt, sampling: Sampling, model: str | None, salt: str | None, priority: int,
        attentive: Callable[[], bool],
    ) -> AsyncGenerator[list[Chunk], None]:
        request = Request(prompt.text, sampling, adapter=model, priority=priority, cache_salt=salt)
        _, document = body(request, model or self.model)
        del document["logprobs"]
        document |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
        call = Call(
            "POST", "/v1/completions", body=json.dumps(document).encode(), chain=chain_of(document, self.model)
        )
        told, output = "", None
        async with self._places:
            for attempt in range(RETRIES + 1):
                try:
                    text, ids = "", list[int]()
                    async with aclosing(self._chunks(call, request)) as chunks:
                        async for chunk in chunks:
                            text, ids, output = text + chunk.text, ids + chunk.token_ids, chunk.output
                            if not (text.startswith(told) or told.startswith(text)):
                                what = "a replica was lost, and another says otherwise"
                                raise RemoteError(what, retryable=True)
                            new = text[len(told) :]
                            told += new
                            if output is None:
                                yield [Chunk(new, chunk.token_ids if new else [], [])]
                    break
                except LostReplica:
                    self._lost()
                    if attempt == RETRIES:
                        raise RemoteError("the replicas that answered are lost", retryable=True) from None
        if output is None:
            raise RemoteError("a replica ended a completion in the middle", retryable=True)
        yield [Chunk("", [], [], output=replace(output, text=text, token_ids=ids))]

    async def _chunks(self, call: Call, request: Request) -> AsyncGenerator[Chunk, None]:
        """What each event brings; the last has an output without its text."""
        reason: FinishReason = "stop"
        async with aclosing(self._documents(call)) as documents:
            async for document in documents:
                if "error" in document:
                    raise RemoteError(str(document["error"]["message"]), retryable=False)
                for choice in document["choices"]:
                    reason = "length" if choice["finish_reason"] == "length" else "stop"
                    yield chunk_of(choice)
                if used := document.get("usage"):
                    cached = used["prompt_tokens_details"]["cached_tokens"]
                    usage = Usage(used["prompt_tokens"], used["completion_tokens"], cached)
                    yield Chunk("", [], [], output=Output("", [], [], reason, usage, 0, request))

    async def _documents(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The events of an answer; what a replica refuses is a UserError, any other failure a RemoteError."""
        status, left = 0, b""
        async with aclosing(self._ask(call)) as answer:
            async for messages in answer:
                for message in messages:
                    status = message.get("status", status)
                    left += message.get("body", b"")
                if status == 200:
                    *events, left = left.split(b"\n\n")
                    for event in events:
                        if (data := event.removeprefix(b"data: ")) != b"[DONE]":
                            yield json.loads(data)
        if status != 200:
            said = str(json.loads(left)["error"]["message"])
            if status in (400, 404):
                raise UserError(said)
            raise RemoteError(f"a replica answered {status}: {said}", retryable=status in (429, 503))
