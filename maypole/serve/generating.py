"""One request for completions, from its body to its answer: whole or as events. Knows no routes.

A client that leaves ends its sequences at the next step, and so does the time an answer may take.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from maypole.core.errors import UserError
from maypole.engine.request import Output, Request, Sampling, ScoreRequest, Usage
from maypole.serve.answers import DONE, Echo, Form, Telling, event, total, usage
from maypole.serve.bodies import ChatBody, CompletionBody, Function, call_schema
from maypole.serve.ending import Ending
from maypole.serve.guard import ApiError, Limits, Queue, from_user_error
from maypole.serve.metrics import Metrics
from maypole.serve.tool_calls import Forced, reader_for

if TYPE_CHECKING:
    from maypole.engine.engine import Engine

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

PART = 32
"""Texts that are scored or embedded before one looks whether anybody still waits."""


@dataclass(frozen=True)
class Job:
    """The engine's requests, one per prompt, with what is echoed before each answer, and the form of the answer."""

    requests: list[Request]
    echoes: list[Echo | None]
    form: Form

    @property
    def n(self) -> int:
        return self.requests[0].sampling.n


class Generating:
    """Jobs run on `engine` within `limits`."""

    def __init__(self, engine: "Engine", queue: Queue, metrics: Metrics, limits: Limits, ending: Ending) -> None:
        self.engine, self.queue, self.metrics, self.limits, self.ending = engine, queue, metrics, limits, ending

    async def completions(self, body: CompletionBody, adapter: str | None, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        with ExitStack() as held:
            held.enter_context(self.queue.admitted(len(body.prompts) * body.n, http))
            ids = await asyncio.to_thread(lambda: [self.engine.encode(prompt) for prompt in body.prompts])
            limit = self._limit(body.most_tokens, 16)
            sampling = body.drawn(limit, body.logprobs)
            requests = [self._request(body, prompt, sampling, adapter, i) for i, prompt in enumerate(ids)]
            echoes: list[Echo | None] = [None] * len(ids)
            if body.echo:
                echoes = list(await self._echoes(body, ids, adapter, http))
            form = Form(
                False, body.model, self.engine.tokenizer, logprobs=body.logprobs is not None,
                token_ids=body.return_token_ids, include_usage=body.include_usage,
            )  # fmt: skip
            return await self._answer(Job(requests, echoes, form), body.stream, http, held)

    async def chat(self, body: ChatBody, adapter: str | None, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        with ExitStack() as held:
            held.enter_context(self.queue.admitted(body.n, http))
            template = str(getattr(self.engine.tokenizer, "chat_template", None) or "")
            if body.tools and "tools" not in template:
                raise ApiError(400, "this model's chat template has no tools", "tools")
            called = body.called
            limit = self._limit(body.most_tokens, self.engine.max_length)
            sampling = body.drawn(
                limit, body.top_logprobs if body.logprobs else None, call_schema(called) if called else None
            )
            tools = [tool.model_dump() for tool in body.tools or ()] if body.tool_choice != "none" else []
            request = replace(
                self._request(body, body.messages, sampling, adapter, 0),
                tools=tools or None,
                chat_template_kwargs=body.chat_template_kwargs,
            )
            ids = await asyncio.to_thread(self.engine.encode, request)
            reader, marks = self._reader(tools, called, ids)
            if marks:  # what marks calls may be special tokens
                sampling = replace(sampling, skip_special_tokens=False)
            request = replace(request, prompt=ids, sampling=sampling, tools=None, chat_template_kwargs=None)
            form = Form(
                True, body.model, self.engine.tokenizer, logprobs=body.logprobs, reader=reader,
                token_ids=body.return_token_ids, include_usage=body.include_usage,
            )  # fmt: skip
            return await self._answer(Job([request], [None], form), body.stream, http, held)

    def _reader(self, tools: list[dict[str, Any]], called: Sequence[Function], ids: list[int]) -> Any:
        """(What finds calls in the answer, whether it needs the special tokens.)"""
        if called:
            return Forced, False
        if not tools:
            return None, False
        tokenizer = self.engine.tokenizer
        told = getattr(tokenizer, "response_template", None) is not None
        return reader_for(tokenizer, tools, tokenizer.decode(ids) if told else ""), told

    def _limit(self, asked: int | None, default: int) -> int:
        most = self.limits.max_tokens
        if asked is not None and most is not None and asked > most:
            raise ApiError(400, f"at most {most:,} tokens a completion", "max_tokens")
        return min(default, most or default) if asked is None else asked

    def _request(self, body: Any, prompt: Any, sampling: Sampling, adapter: str | None, index: int) -> Request:
        sampling = replace(sampling, seed=(sampling.seed + index) % 2**64) if body.seed is None else sampling
        return Request(
            prompt, sampling, adapter=adapter, priority=body.priority, cache_salt=body.cache_salt,
            timeout=self.limits.timeout,
        )  # fmt: skip

    async def _echoes(
        self, body: CompletionBody, ids: Sequence[list[int]], adapter: str | None, http: HttpRequest
    ) -> list[Echo]:
        texts = [prompt if isinstance(prompt, str) else self.engine.tokenizer.decode(prompt) for prompt in body.prompts]
        if body.logprobs is None:
            return [Echo.of(text, prompt, None) for text, prompt in zip(texts, ids)]
        wanted = [ScoreRequest(prompt[:1], [prompt[1:]], adapter) for prompt in ids]
        found = await self.wait(in_parts(self.engine.score, wanted), http)
        return [Echo.of(text, prompt, scored) for text, prompt, (scored,) in zip(texts, ids, found)]

    async def wait(self, work: Awaitable[Result], http: HttpRequest) -> Result:
        """The result of `work`, given up when the client leaves, time is over or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(left(http))
        try:
            with self.ending.expiry() as expiry:
                await asyncio.wait(
                    {task, gone, expiry}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
                )
                if task.done():
                    return task.result()
                raise _gone() if gone.done() else _ended() if expiry.done() else self._late()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _answer(self, job: Job, stream: bool, http: HttpRequest, held: ExitStack) -> Response:
        if not stream:
            return JSONResponse(await self._whole(job, http))
        events = self._events(job, http)
        try:
            first = await self.wait(anext(events), http)  # what is refused is refused before the answer begins
        except BaseException:
            await events.aclose()
            raise
        return Events(first, events, held.pop_all(), self.limits.timeout)

    async def _whole(self, job: Job, http: HttpRequest) -> dict[str, Any]:
        begin = time.monotonic()
        outputs = await self.wait(self.engine.agenerate(job.requests), http)
        for output in outputs:
            self._check(output)
        self.metrics.e2e.observe(time.monotonic() - begin)
        choices = [job.form.choice(i, output, job.echoes[i // job.n]) for i, output in enumerate(outputs)]
        return job.form.document(choices, streamed=False, usage=self._used(outputs, job.n))

    def _check(self, output: Output) -> None:
        """An answer that was cut off by no wish of the client's is an error."""
        if output.finish_reason in ("timeout", "cancelled"):
            raise self._late() if output.finish_reason == "timeout" else _ended()

    def _late(self) -> ApiError:
        return ApiError(408, f"not answered within {self.limits.timeout:g} seconds", code="timeout")

    def _used(self, outputs: Sequence[Output], n: int, counted: int = 0) -> dict[str, Any]:
        """What an answer took; `counted` of its tokens were counted as they came."""
        used = total(outputs, n)
        self.metrics.count(replace(used, completion_tokens=used.completion_tokens - counted))
        for output in outputs:
            self.metrics.queue.observe(output.queued)
        return usage(used)

    async def _events(self, job: Job, http: HttpRequest) -> AsyncGenerator[bytes, None]:
        """Every event of a streamed answer; an error after the first is told as an event."""
        begin = last = time.monotonic()
        form, told, started, counted = job.form, dict[int, Telling](), False, 0
        try:
            async with aclosing(self.engine.streams(job.requests)) as turns:
                async for turn in turns:
                    now = time.monotonic()
                    (self.metrics.itl if started else self.metrics.ttft).observe(now - last)
                    last, said = now, bytearray()
                    for at, chunk in turn:
                        if chunk.output is not None:
                            self._check(chunk.output)
                        index = at * job.n + chunk.index
                        if index not in told:
                            told[index] = Telling(form, index, job.echoes[at])
                        said += told[index].events(chunk)
                        counted += len(chunk.token_ids)
                        self.metrics.count(Usage(0, len(chunk.token_ids)))
                    yield bytes(said)
                    started = True
        except Exception as error:
            if not started:
                raise
            told_error = _told(error)
            if told_error.status == 500:
                log.error("a stream failed: %s", type(error).__name__)
            http.state.status = told_error.status
            yield event(told_error.document)
            return
        self.metrics.e2e.observe(time.monotonic() - begin)
        used = self._used([output for i in sorted(told) if (output := told[i].output)], job.n, counted)
        yield (event(form.document([], streamed=True, usage=used)) if form.include_usage else b"") + DONE


async def in_parts(work: Callable[[Sequence[Item]], Iterable[Result]], items: Sequence[Item]) -> list[Result]:
    """`work` on a few items at a time, each part in a thread, so that it can be given up in between."""
    found: list[Result] = []
    for begin in range(0, len(items), PART):
        found.extend(await asyncio.to_thread(work, items[begin : begin + PART]))
    return found


class Events(StreamingResponse):
    """Server-sent events of which the first is there; whatever ends it, `events` is closed and `held` let go.

    A client that leaves is noted as such, and one that has not read all after `seconds` is given up.
    """

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], held: ExitStack, seconds: float) -> None:
        async def body() -> AsyncGenerator[bytes, None]:
            yield first
            async for item in events:
                yield item
            self._whole = True

        super().__init__(body(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._held, self._seconds, self._whole = events, held, seconds, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                async with asyncio.timeout(self._seconds + 1):  # the engine's own limit comes first
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                scope["state"]["status"] = 408
            finally:
                await self._events.aclose()
                if not self._whole:
                    scope["state"].setdefault("status", 499)


def _told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return from_user_error(error) if isinstance(error, UserError) else ApiError(500, "the server failed")


def _gone() -> ApiError:
    return ApiError(499, "the client left")


def _ended() -> ApiError:
    return ApiError(503, "the server ended before this answer did", code="draining")


async def left(http: HttpRequest) -> None:
    """Returns when the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
