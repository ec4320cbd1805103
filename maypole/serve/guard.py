"""Who may ask, how much, and what an error looks like: OpenAI's shape for every refusal.

Knows nothing about models or routes. No text of a request reaches an error that is logged.
"""

import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from maypole.core.errors import ConfigError, UserError

OPEN = frozenset({"/health", "/live", "/ready"})
"""Paths that probes read without a key."""
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


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
        return ApiError(400, f"{error.field}: {error.what}; accepted: {error.accepted}", error.field)
    return ApiError(400, error.message)


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object; 413 as soon as it is longer than `max_bytes`, 400 where it is no JSON."""
    too_long = ApiError(413, f"the body is longer than {max_bytes:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise too_long
    try:
        document = json.loads(body, parse_constant=_no_number)
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ApiError(400, "the body has text that is not Unicode (a lone surrogate or wrong UTF-8)") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, "the body is not valid JSON") from error
    if not isinstance(document, dict):
        raise ApiError(400, "the body is not a JSON object")
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Queue:
    """How many sequences are in the house, and whether one more may wait. `running` says how many do not wait."""

    def __init__(self, most: int, running: Callable[[], int]) -> None:
        self.most, self._running = most, running
        self.active = 0

    @contextlib.contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Hold places for `count` sequences; 429 where the queue is full."""
        if count > self.most:
            raise ApiError(400, f"{count} completions in one request; at most {self.most}")
        if self.active - self._running() + count > self.most:
            raise ApiError(429, f"the queue is full ({self.most} requests wait)", code="queue_full")
        self.active += count
        try:
            yield
        finally:
            self.active -= count


class Guard:
    """Checks Host and key before the application sees a request; `draining` answers 503 to what is new."""

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], keys: Iterable[str], draining: Callable[[], bool]
    ) -> None:
        self._app, self._draining = app, draining
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
        if scope["path"] in OPEN:
            return None
        if self._keys and not self._known(headers.get(b"authorization", b"")):
            return ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        if self._draining() and scope["method"] == "POST":
            return ApiError(503, "the server is shutting down", code="draining")
        return None

    def _known(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        # Every key is compared, whole, so that time tells nothing.
        same = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(same)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """The host without its port."""
    return host.lower().rpartition("]")[0] + "]" if host.startswith("[") else host.lower().partition(":")[0]
