"""An engine behind an OpenAI-compatible URL (vLLM, SGLang, llama-server, others): the same calls, over HTTP.

What the endpoint is not known to do is refused before anything is sent. Knows nothing about weights.
"""

import asyncio
import email.utils
import json
import random
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np

from maypole.core.errors import ConfigError, RemoteError, UnsupportedCapability, UserError
from maypole.engine.remote_form import (
    CAPABILITIES,
    STANDARD,
    body,
    chunk_of,
    finish_of,
    known_of,
    needed_for,
    outputs,
    scored,
)
from maypole.engine.request import Chunk, Merged, Output, Request, Sampling, Scored, ScoreRequest, Target, is_ids

Result = TypeVar("Result")
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""


class RemoteEngine:
    """Requests to `url` (with or without its /v1), `concurrency` at a time and at most `requests_per_minute`.

    Parameters
    ----------
    model
        What requests name; None: the endpoint's only or first one. `Request.adapter` names another of its models.
    capabilities
        What the endpoint can do beyond plain generation: names among `CAPABILITIES`. Without them those that are known
        of who says to own its models, else only what every such endpoint has.
    retries, backoff
        A request that failed for a passing reason is sent again, after `backoff` seconds times 2, 4, ..., each time a
        random part of it and never sooner than the endpoint asks for.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        capabilities: Iterable[str] | None = None,
        concurrency: int = 32,
        requests_per_minute: float | None = None,
        retries: int = 5,
        backoff: float = 0.5,
        timeout: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("url", url, "http://HOST:PORT or https://HOST")
        if concurrency < 1:
            raise ConfigError("concurrency", concurrency, "at least 1")
        wrong = sorted(set(capabilities or ()) - CAPABILITIES)
        if wrong:
            raise ConfigError("capabilities", wrong[0], sorted(CAPABILITIES))
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._retries, self._backoff = retries, backoff
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="maypole-remote", daemon=True)
        self._thread.start()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), transport=transport
        )
        self._gate = asyncio.Semaphore(concurrency)
        try:
            models = self._call(self._get("models")).get("data") or []
        except BaseException:
            self.close()
            raise
        self.models = tuple(str(m.get("id")) for m in models)
        if model is None and not self.models:
            self.close()
            raise UserError("the endpoint names no model", self.url, "model=NAME")
        self.model = model or self.models[0]
        owner = next((str(m.get("owned_by", "")).lower() for m in models if m.get("id") == self.model), "")
        self.capabilities = frozenset(
            {"remote", *STANDARD, *(known_of(owner) if capabilities is None else capabilities)}
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `Request.adapter` may have: the endpoint's other models."""
        return tuple(name for name in self.models if name != self.model)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """As `Engine.generate`; `token_ids` are empty where they are not told. RemoteError if one request fails."""
        return self._call(self.agenerate(requests))

    async def agenerate(self, requests: Sequence[Request]) -> list[Output]:
        """`generate` that leaves the event loop free."""
        for i, request in enumerate(requests):
            self._check(request, i)
        made = await self._in_loop(self._all([self._one(request) for request in requests]))
        return [output for found in made for output in found]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """As `Engine.stream`; nothing is sent again once text has come."""
        self._check(request, 0)
        queue: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        here = asyncio.get_running_loop()

        async def pump() -> None:
            try:
                async for chunk in self._stream(request):
                    here.call_soon_threadsafe(queue.put_nowait, chunk)
                here.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:
                here.call_soon_threadsafe(queue.put_nowait, error)

        running = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            running.cancel()

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Scored]]:
        """As `Engine.score`, by completions of no token that echo their prompt; prompts and continuations are ids."""
        self._need("score")
        for i, request in enumerate(requests):
            if not is_ids(request.prompt) or not all(is_ids(c) for c in request.continuations):
                raise UnsupportedCapability("only token ids can be scored at an endpoint", f"request {i}", "ids")
            self._known(request.adapter, i)
        found = self._call(self._all([self._score(r, c) for r in requests for c in r.continuations]))
        rest = iter(found)
        return [[next(rest) for _ in request.continuations] for request in requests]

    def embed(self, texts: Sequence[str | Sequence[int]], *, adapter: str | None = None) -> np.ndarray:
        """(n, d) vectors in fp32, pooled and scaled as the endpoint does it."""
        self._need("embed")
        self._known(adapter, 0)
        inputs = [t if isinstance(t, str) else list(t) for t in texts]
        parts = [inputs[a : a + 64] for a in range(0, len(inputs), 64)]
        sent = [self._post("embeddings", {"model": adapter or self.model, "input": part}) for part in parts]
        rows = [row for part in self._call(self._all(sent)) for row in sorted(part["data"], key=lambda r: r["index"])]
        return np.array([row["embedding"] for row in rows], dtype=np.float32)

    def close(self) -> None:
        """End the connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "RemoteEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: Request, index: int) -> None:
        """UnsupportedCapability for what this endpoint is not known to do."""
        where, sampling = f"request {index}", request.sampling
        self._known(request.adapter, index)
        if is_ids(request.prompt):
            self._need("ids", where)
        default = Sampling()
        for field in fields(Sampling):
            if getattr(sampling, field.name) == getattr(default, field.name):
                continue
            needed = needed_for(field.name)
            if needed is None:
                raise UnsupportedCapability(f"{field.name!r} cannot be asked of an endpoint", where, "a local engine")
            self._need(needed, f"{where}: {field.name}")
        if request.timeout is not None:
            raise UnsupportedCapability("an endpoint keeps its own time", where, "timeout= of the connection")
        if request.cache_salt is not None or request.priority or request.chat_template_kwargs:
            self._need("extended", where)

    def _need(self, capability: str, where: str = "") -> None:
        if capability not in self.capabilities:
            known = ", ".join(sorted(self.capabilities))
            raise UnsupportedCapability(
                f"this endpoint is not known for {capability!r}", where or self.url, f"known: {known}; capabilities=..."
            )

    def _known(self, adapter: Target | None, index: int) -> None:
        if isinstance(adapter, Merged):
            raise UnsupportedCapability("an endpoint merges no adapters", f"request {index}", "a local engine")
        if adapter and self.models and adapter not in self.models:
            raise UserError(f"no model {adapter!r}", f"request {index}", f"the endpoint has: {', '.join(self.models)}")

    async def _one(self, request: Request) -> list[Output]:
        route, document = body(request, str(request.adapter or self.model))
        return outputs(await self._post(route, document), request)

    async def _score(self, request: ScoreRequest, continuation: Any) -> Scored:
        prompt, ids = [int(i) for i in request.prompt or ()], [int(i) for i in continuation]  # pyright: ignore[reportArgumentType]
        document = {
            "model": request.adapter or self.model, "prompt": prompt + ids, "max_tokens": 0, "temperature": 0.0,
            "echo": True, "logprobs": 1,
        }  # fmt: skip
        return scored(await self._post("completions", document), len(prompt), ids)

    async def _stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        route, document = body(request, str(request.adapter or self.model))
        document |= {"stream": True, "stream_options": {"include_usage": True}}
        said: dict[int, list[Chunk]] = {}
        async with self._gate, self._client.stream("POST", f"{self.url}/{route}", json=document) as answer:
            if answer.status_code >= 400:
                await answer.aread()
                raise _failed(answer)
            async for line in answer.aiter_lines():
                text = line.removeprefix("data:").strip()
                if not line.startswith("data:") or text == "[DONE]":
                    continue
                event = _decoded(text)
                for choice in event.get("choices") or ():
                    chunk = chunk_of(choice)
                    said.setdefault(chunk.index, []).append(chunk)
                    reason = choice.get("finish_reason")
                    if reason is not None:
                        yield finish_of(said[chunk.index], chunk, reason, request)
                    elif chunk.text or chunk.token_ids:
                        yield chunk

    async def _get(self, route: str) -> dict[str, Any]:
        return await self._send("GET", route, None)

    async def _post(self, route: str, document: Mapping[str, Any]) -> dict[str, Any]:
        return await self._send("POST", route, document)

    async def _send(self, method: str, route: str, document: Mapping[str, Any] | None) -> dict[str, Any]:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                async with self._gate:
                    await self._turn()
                    answer = await self._client.request(method, f"{self.url}/{route}", json=document)
            except httpx.TransportError as error:
                if last:
                    raise RemoteError(f"{self.url}: {type(error).__name__}: {error}", retryable=True) from error
                await asyncio.sleep(self._pause(attempt))
                continue
            if answer.status_code < 400:
                return _decoded(answer.text)
            if answer.status_code not in RETRIED or last:
                raise _failed(answer)
            await asyncio.sleep(max(self._pause(attempt), _asked_for(answer)))
        raise AssertionError

    async def _turn(self) -> None:
        """Wait until the rate allows another request."""
        if self._interval:
            now = time.monotonic()
            at = self._next = max(self._next + self._interval, now)
            await asyncio.sleep(at - now)

    def _pause(self, attempt: int) -> float:
        return self._backoff * 2 ** (attempt + 1) * random.random()

    async def _all(self, sent: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """All results in order; the first failure ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in sent]
        except* (RemoteError, UserError) as group_error:
            raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _decoded(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RemoteError(f"the endpoint answered with no JSON: {text[:200]!r}", retryable=False) from error
    if not isinstance(found, dict):
        raise RemoteError(f"the endpoint answered with a {type(found).__name__}, not an object", retryable=False)
    return found


def _failed(answer: httpx.Response) -> RemoteError:
    try:
        document = answer.json()
        error = document.get("error", document) if isinstance(document, dict) else document
        said = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        said = answer.text
    return RemoteError(f"{answer.request.url}: {answer.status_code}: {str(said)[:500]}",
                       retryable=answer.status_code in RETRIED)  # fmt: skip


def _asked_for(answer: httpx.Response) -> float:
    """Seconds of a Retry-After header, which may also be a date; at most a minute."""
    text = answer.headers.get("retry-after", "")
    try:
        return min(float(text), 60.0)
    except ValueError:
        try:
            return min(max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0), 60.0)
        except ValueError:
            return 0.0
