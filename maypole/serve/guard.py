"""Who may ask, how much, and what an error looks like: OpenAI's shape for every refusal.

Knows nothing about models or routes. No text of a request reaches an error that is logged.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from maypole.core.errors import ConfigError, UserError

OPEN = frozenset({"/health", "/live", "/ready"})
"""Paths that probes read without a key."""
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server.

    Bytes of a body and seconds in which it has to come; tokens of a completion and seconds of an answer; completions
    that may wait, and those that one key may have at once; seconds without a step after which health fails.
    """

    max_body_bytes: int = 4 * 2**20
    read_timeout: float = 30.0
    max_tokens: int | None = None
    timeout: float = 600.0
    max_queue: int = 256
    max_per_key: int | None = None
    stall: float = 5.0


class ApiError(Exception):
    """A refusal: HTTP status, what was wrong, the field, and a code for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        super().__init__(message)

    @property
    def document(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.document, self.status, headers)


def from_user_error(error: UserError) -> ApiError:
    """What the engine refused, as a bad request."""
    if isinstance(error, ConfigError):
        return ApiError(400, f"{error.field}: {_short(error.what)}; accepted: {_short(error.accepted)}", error.field)
    return ApiError(400, _short(error.message))


def _short(text: str) -> str:
    """What quotes a long value says enough with its ends."""
    return text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object; 413 as soon as it is too long, 408 where it is too slow, 400 where it is no JSON."""
    try:
        async with asyncio.timeout(limits.read_timeout):
            body = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.read_timeout:g} seconds", code="timeout") from None
    try:
        document = decoded(body)
    except UnicodeError as error:
        raise ApiError(400, "the body has text that is not Unicode (a lone surrogate or wrong UTF-8)") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, "the body is not valid JSON") from error
    if not isinstance(document, dict):
        raise ApiError(400, "the body is not a JSON object")
    return document


def decoded(text: str | bytes | bytearray) -> Any:
    """JSON; ValueError where it is none, has numbers that JSON has not, or text that is not Unicode."""
    document = json.loads(text, parse_constant=_no_number)
    json.dumps(document, ensure_ascii=False).encode()
    return document


async def _read(request: Request, max_bytes: int) -> bytearray:
    too_long = ApiError(413, f"the body is longer than {max_bytes:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise too_long
    return body


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Queue:
    """How many completions are in the house, and whether more may wait. `running` says how many do not wait."""

    def __init__(self, limits: Limits, running: Callable[[], int]) -> None:
        self._limits, self._running = limits, running
        self.active = 0
        self._of: Counter[int] = Counter()

    @contextlib.contextmanager
    def admitted(self, count: int, request: Request) -> Iterator[None]:
        """Hold places for `count` completions; 429 where the queue is full or the key has too many."""
        key = getattr(request.state, "key", None)
        most, each = self._limits.max_queue, self._limits.max_per_key
        if count > most:
            raise ApiError(400, f"one request may ask for {most} completions at most")
        if self.active - self._running() + count > most:
            raise ApiError(429, f"the queue is full ({most} completions wait)", code="queue_full")
        if key is not None and each is not None and self._of[key] + count > each:
            if count > each:
                raise ApiError(400, f"one key may ask for {each} completions at most")
            raise ApiError(429, f"this key has {each} completions under way already", code="key_limit")
        self.active += count
        if key is not None:
            self._of[key] += count
        try:
            yield
        finally:
            self.active -= count
            if key is not None:
                self._of[key] -= count


class Guard:
    """Checks Host and key before the application sees a request; `draining` answers 503 to what is new; `public` paths
    need no key.

    The application finds the place of the request's key among all keys in ``scope["state"]["key"]``.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], keys: Iterable[str], draining: Callable[[], bool],
        public: Container[str] = OPEN,
    ) -> None:  # fmt: skip
        self._app, self._draining, self._public = app, draining, public
        self._hosts = frozenset(host.lower() for host in hosts)
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal.response if refusal else self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        host = _name(headers.get(b"host", b"").decode("latin-1"))
        if "*" not in self._hosts and host not in self._hosts:
            return ApiError(400, "this host name is not served", code="host_not_allowed")
        if scope["path"] in self._public:
            return None
        if self._keys:
            key = self._known(headers.get(b"authorization", b""))
            if key is None:
                return ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            scope.setdefault("state", {})["key"] = key
        if self._draining() and scope["method"] == "POST":
            return ApiError(503, "the server is shutting down", code="draining")
        return None

    def _known(self, authorization: bytes) -> int | None:
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        # Every key is compared, whole, so that time tells nothing.
        same = [hmac.compare_digest(given, known) for known in self._keys]
        return same.index(True) if scheme.lower() == b"bearer" and any(same) else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """The host without its port."""
    return host.lower().rpartition("]")[0] + "]" if host.startswith("[") else host.lower().partition(":")[0]
