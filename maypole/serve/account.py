"""Every request is counted and logged: when, what route, which model, how it ended and how long it took.

Its id in the log is the one in the answer's header X-Request-Id. Knows nothing of what requests say.
"""

import json
import logging
import time
import uuid
from collections.abc import Container
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maypole.serve.guard import ApiError
from maypole.serve.metrics import FrontMetrics, Metrics

log = logging.getLogger(__name__)
requests = logging.getLogger("maypole.serve.requests")
"""A line of JSON for each request."""


class Account:
    """Counts and logs every request; what is well at `quiet` paths, which are asked again and again, at DEBUG.

    The application may leave in ``scope["state"]`` the `model` that answered, a `warning` for the client about ignored
    fields, and the `status` of what ended otherwise than it began (a client that left a stream: 499).
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics | FrontMetrics, quiet: Container[str] = ()) -> None:
        self._app, self._metrics, self._quiet = app, metrics, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, begun, id = time.monotonic(), 499, False, uuid.uuid4().hex
        state = scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                headers = [*message["headers"], (b"x-request-id", id.encode())]
                if "warning" in state:
                    headers.append((b"x-ignored-fields", state["warning"].encode("ascii")))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # its message may quote the request: only its kind is told
            log.error("a request failed: %s", type(error).__name__)
            log.debug("its traceback", exc_info=error)
            if not begun:
                await ApiError(500, "the server failed at this request").response(scope, receive, noted)
        finally:
            route = scope.get("route")
            model = state.get("model", "")
            status = state.get("status", status)
            self._metrics.requests.labels(status, model).inc()
            fields = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "id": id, "method": scope["method"],
                "route": getattr(route, "path", None), "status": status, "model": model,
                "seconds": round(time.monotonic() - begin, 4),
            }  # fmt: skip
            level = logging.DEBUG if status == 200 and scope["path"] in self._quiet else logging.INFO
            requests.log(level, "%s", json.dumps(fields))
