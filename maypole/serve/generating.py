"""One request for completions, from its body to its answer: whole or as events. Knows no routes.

A client that leaves ends its sequences at the next step.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from maypole.core.errors import UserError
from maypole.engine.request import Chunk, Output, Request, Sampling, ScoreRequest
from maypole.serve.answers import DONE, Echo, Form, event, usage
from maypole.serve.bodies import ChatBody, CompletionBody, call_schema
from maypole.serve.guard import ApiError, Queue, from_user_error
from maypole.serve.metrics import Metrics

if TYPE_CHECKING:
    from maypole.engine.engine import Engine

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


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
    """Jobs run on `engine`, each within `timeout` seconds and, where `max_tokens` is given, that many tokens."""

    def __init__(
        self, engine: "Engine", queue: Queue, metrics: Metrics, *, max_tokens: int | None, timeout: float
    ) -> None:
        self.engine, self.queue, self.metrics = engine, queue, metrics
        self.max_tokens, self.timeout = max_tokens, timeout

    async def completions(self, body: CompletionBody, adapter: str | None, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        with ExitStack() as held:
            held.enter_context(self.queue.admitted(len(body.prompts) * body.n))
            ids = await asyncio.to_thread(lambda: [self.engine.encode(prompt) for prompt in body.prompts])
            limit = self._limit(body.max_tokens, 16)
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
            held.enter_context(self.queue.admitted(body.n))
            template = str(getattr(self.engine.tokenizer, "chat_template", None) or "")
            if body.tools and "tools" not in template:
                raise ApiError(400, "this model's chat template has no tools", "tools")
            called = body.called
            asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
            limit = self._limit(asked, self.engine.max_length)
            sampling = body.drawn(
                limit, body.top_logprobs if body.logprobs else None, call_schema(called) if called else None
            )
            tools = [tool.model_dump() for tool in body.tools or ()] if body.tool_choice != "none" else None
            request = replace(
                self._request(body, body.messages, sampling, adapter, 0),
                tools=tools or None,
                chat_template_kwargs=body.chat_template_kwargs,
            )
            form = Form(
                True, body.model, self.engine.tokenizer, logprobs=body.logprobs, calls=bool(called),
                token_ids=body.return_token_ids, include_usage=body.include_usage,
            )  # fmt: skip
            return await self._answer(Job([request], [None], form), body.stream, http, held)

    def _limit(self, asked: int | None, default: int) -> int:
        most = self.max_tokens
        if asked is not None and most is not None and asked > most:
            raise ApiError(400, f"at most {most:,} tokens a completion", "max_tokens")
        return min(default, most or default) if asked is None else asked

    def _request(self, body: Any, prompt: Any, sampling: Sampling, adapter: str | None, index: int) -> Request:
        sampling = replace(sampling, seed=(sampling.seed + index) % 2**64) if body.seed is None else sampling
        return Request(prompt, sampling, adapter=adapter, priority=body.priority, cache_salt=body.cache_salt)

    async def _echoes(
        self, body: CompletionBody, ids: Sequence[list[int]], adapter: str | None, http: HttpRequest
    ) -> list[Echo]:
        texts = [prompt if isinstance(prompt, str) else self.engine.tokenizer.decode(prompt) for prompt in body.prompts]
        if body.logprobs is None:
            return [Echo.of(text, prompt, None) for text, prompt in zip(texts, ids)]
        wanted = [ScoreRequest(prompt[:1], [prompt[1:]], adapter) for prompt in ids]
        found = await self.wait(asyncio.to_thread(self.engine.score, wanted), http)
        return [Echo.of(text, prompt, scored) for text, prompt, (scored,) in zip(texts, ids, found)]

    async def wait(self, work: Awaitable[Result], http: HttpRequest) -> Result:
        """The result of `work`, given up when the client leaves or time is over."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({task, gone}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            raise ApiError(408, f"not answered within {self.timeout:g} seconds", code="timeout")
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _answer(self, job: Job, stream: bool, http: HttpRequest, held: ExitStack) -> Response:
        if not stream:
            return JSONResponse(await self._whole(job, http))
        events = self._events(job)
        try:
            first = await self.wait(anext(events), http)  # what is refused is refused before the answer begins
        except BaseException:
            await events.aclose()
            raise
        return Events(first, events, held.pop_all())

    async def _whole(self, job: Job, http: HttpRequest) -> dict[str, Any]:
        begin = time.monotonic()
        outputs = await self.wait(self.engine.agenerate(job.requests), http)
        self.metrics.e2e.observe(time.monotonic() - begin)
        choices = [job.form.choice(i, output, job.echoes[i // job.n]) for i, output in enumerate(outputs)]
        return job.form.document(choices, streamed=False, usage=self._used(outputs, job.n))

    def _used(self, outputs: Sequence[Output], n: int) -> dict[str, Any]:
        prompts = [(o.usage.prompt_tokens, o.usage.cached_tokens) for o in outputs[::n]]
        generated = sum(o.usage.completion_tokens for o in outputs)
        self.metrics.count(sum(p for p, _ in prompts), sum(c for _, c in prompts), generated)
        return usage(prompts, generated)

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Every event of a streamed answer; an error after the first is told as an event."""
        begin = time.monotonic()
        form, outputs, offsets = job.form, {}, {}
        started = False
        try:
            async with aclosing(self._chunks(job, begin + self.timeout)) as chunks:
                async for at, chunk in chunks:
                    index = at * job.n + chunk.index
                    echo = None
                    if not started:
                        self.metrics.ttft.observe(time.monotonic() - begin)
                    if index not in offsets:
                        echo = job.echoes[at]
                        offsets[index] = 0
                        if form.chat:
                            role = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                                    "finish_reason": None}  # fmt: skip
                            yield event(form.document([role], streamed=True))
                            started = True
                    choice = form.delta(index, chunk, offsets[index], echo)
                    said = (*echo.ids, *chunk.token_ids) if echo else chunk.token_ids
                    offsets[index] += sum(len(form.token(i)) for i in said) if form.logprobs else 0
                    if chunk.output is not None:
                        outputs[index] = chunk.output
                    yield event(form.document([choice], streamed=True))
                    started = True
        except Exception as error:
            if not started:
                raise
            log.error("a stream failed: %s", type(error).__name__)
            yield event(_told(error).document)
            return
        self.metrics.e2e.observe(time.monotonic() - begin)
        used = self._used([outputs[i] for i in sorted(outputs)], job.n)
        if form.include_usage:
            yield event(form.document([], streamed=True, usage=used))
        yield DONE

    async def _chunks(self, job: Job, deadline: float) -> AsyncGenerator[tuple[int, Chunk], None]:
        """(which prompt, chunk) of all prompts as they come, until `deadline`."""
        queue: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue()

        async def forward(at: int, request: Request) -> None:
            try:
                async with aclosing(self.engine.stream(request)) as chunks:
                    async for chunk in chunks:
                        queue.put_nowait((at, chunk))
                queue.put_nowait((at, None))
            except Exception as error:
                queue.put_nowait((at, error))

        tasks = [asyncio.create_task(forward(i, request)) for i, request in enumerate(job.requests)]
        left = len(tasks)
        try:
            while left:
                try:
                    at, chunk = await asyncio.wait_for(queue.get(), max(deadline - time.monotonic(), 0))
                except TimeoutError:
                    raise ApiError(408, f"not answered within {self.timeout:g} seconds", code="timeout") from None
                if isinstance(chunk, BaseException):
                    raise chunk
                if chunk is None:
                    left -= 1
                else:
                    yield at, chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Events(StreamingResponse):
    """Server-sent events of which the first is there; whatever ends it, `events` is closed and `held` let go."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        async def body() -> AsyncGenerator[bytes, None]:
            yield first
            async for item in events:
                yield item

        super().__init__(body(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._events.aclose()


def _told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return from_user_error(error) if isinstance(error, UserError) else ApiError(500, "the server failed")


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
