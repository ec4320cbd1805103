"""docs/server.md: what it tells a client to send is answered."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import httpx
import pytest

from maypole.engine import Engine
from maypole.serve.app import create_app
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import running

PAGE = (Path(__file__).parent.parent.parent / "docs" / "server.md").read_text()
URL = "http://127.0.0.1:8000"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(lm_of())


def test_its_curl_commands_are_answered(engine: Engine):
    commands = [line for block in _blocks("") for line in block.replace("\\\n", " ").splitlines() if "curl " in line]
    assert commands
    with running(create_app(engine, name="base")) as url:
        for words in map(shlex.split, commands):
            flags = dict(zip(words[2::2], words[3::2]))
            headers = dict([flags["-H"].split(": ")])
            answer = httpx.post(words[1].replace(URL, url), content=flags["-d"], headers=headers)
            assert answer.status_code == 200, answer.text


def test_its_snippets_run(engine: Engine):
    snippets = _blocks("python")
    assert snippets
    with running(create_app(engine, name="base")) as url:
        for snippet in snippets:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(snippet.replace(URL, url), "docs/server.md", "exec"), {"__name__": "__main__"})
            assert said.getvalue()


def test_it_names_every_route(engine: Engine):
    app = create_app(engine, name="base")
    named = set(re.findall(r"(/[a-z_0-9/.]+)", PAGE))
    described = [route for route in app.routes if getattr(route, "include_in_schema", False)]
    routes = {getattr(route, "path", "").partition("/{")[0] for route in described}
    assert routes <= named
