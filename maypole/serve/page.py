"""The page at `/`: a fixed list of files, read once, with headers that let it load and reach nothing but this server.

Whoever may reach the server may read the page, which holds nothing: what it shows it asks for, with the reader's key.
Knows no engine and no other route.
"""

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maypole.core.theme import css_variables

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = (
    "index.html", "page.css", "icon.svg",
    "main.js", "dom.js", "server.js", "health.js", "store.js", "markdown.js",
    "chat.js", "answer.js", "settings.js", "rows.js", "request.js",
    "program.js", "session.js", "feed.js", "layout.js", "graph.js", "timeline.js", "examples.js",
    "vendor/eventsource-parser/index.js",
    "vendor/streaming-markdown/smd.min.js",
)  # fmt: skip


@cache
def contents() -> dict[str, tuple[bytes, str]]:
    """Path at the server -> the file's bytes and type."""
    folder = files("maypole.serve") / "web"
    found = {name: (folder / name).read_bytes() for name in _FILES}
    found["theme.css"] = css_variables().encode()
    return {
        "/" if name == "index.html" else f"/web/{name}": (body, f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8")
        for name, body in found.items()
    }


def routes() -> list[Route]:
    """A route for each file."""

    def route(path: str, body: bytes, kind: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(body, headers={**HEADERS, "Content-Type": kind})

        return Route(path, answer, methods=["GET"], include_in_schema=False)

    return [route(path, *content) for path, content in contents().items()]
