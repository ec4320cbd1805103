"""The page as files: what is sent, with which headers, to whom."""

import hashlib
import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import html5lib
import pytest

from maypole.core.theme import css_variables
from maypole.serve import page
from tests.serve.serve_fixtures import app_of, call

WEB = Path(str(files("maypole.serve") / "web"))
SOURCES = json.loads((WEB / "vendor" / "sources.json").read_text())


@pytest.fixture(scope="module")
def app() -> Any:
    return app_of(keys=("secret",))


def test_every_file_is_sent_without_a_key_under_the_policy_and_nothing_else_is(app: Any):
    for path, (body, kind) in page.contents().items():
        answer = call(app, "GET", path)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, body, kind)
        assert {name: answer.headers[name] for name in page.HEADERS} == page.HEADERS
    others = ("/web/", "/web/page.py", "/web/../app.py", "/web/vendor/sources.json", "/index.html", "/docs", "/redoc")
    for path in others:
        assert call(app, "GET", path).status_code in (401, 404)


def test_the_policy_is_the_one_that_lets_in_nothing_foreign():
    assert page.HEADERS["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )
    assert page.HEADERS["X-Content-Type-Options"] == "nosniff"
    assert page.HEADERS["Referrer-Policy"] == "no-referrer"


def test_what_a_page_asks_again_and_again_is_logged_only_where_it_fails(app: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "maypole.serve.requests")
    for path in ("/", "/web/main.js", "/ready", "/metrics"):
        call(app, "GET", path, headers={"Authorization": "Bearer secret"})
    assert caplog.records == []
    call(app, "GET", "/metrics")
    assert [json.loads(record.getMessage())["status"] for record in caplog.records] == [401]


def test_a_name_that_is_not_the_servers_gets_no_page(app: Any):
    answer = call(app, "GET", "/", headers={"Host": "evil.test"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "host_not_allowed")


def test_scripts_and_styles_together_are_small():
    sent = {path: len(body) for path, (body, _) in page.contents().items() if path.endswith((".js", ".css"))}
    assert sum(sent.values()) < 100_000, sent


def test_what_is_not_ours_is_what_was_published_with_its_licence():
    assert [(source["package"], source["license"]) for source in SOURCES] == [
        ("eventsource-parser", "MIT"), ("streaming-markdown", "MIT"),
    ]  # fmt: skip
    there = {p.relative_to(WEB / "vendor").as_posix() for p in (WEB / "vendor").rglob("*") if p.is_file()}
    assert there == {"sources.json", *(f"{s['package']}/{name}" for s in SOURCES for name in s["sha256"])}
    for source in SOURCES:
        assert "LICENSE" in source["sha256"]
        for name, digest in source["sha256"].items():
            assert hashlib.sha256((WEB / "vendor" / source["package"] / name).read_bytes()).hexdigest() == digest


def test_every_file_that_is_there_is_sent():
    there = {f"/web/{p.relative_to(WEB).as_posix()}" for p in WEB.rglob("*") if p.is_file()}
    kept = {path for path in there if path.endswith(("LICENSE", "sources.json"))}
    assert there - kept - {"/web/index.html"} | {"/", "/web/theme.css"} == set(page.contents())


def test_the_page_is_valid_has_its_landmarks_and_no_script_or_style_of_its_own():
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    root = parser.parse(page.contents()["/"][0].decode())
    assert [len(root.findall(f".//{tag}")) for tag in ("h1", "main", "nav", "header")] == [1] * 4
    assert all(not script.text and script.get("src", "").startswith("web/") for script in root.iter("script"))
    assert not list(root.iter("style"))
    assert not [e.tag for e in root.iter() if any(n == "style" or n.startswith("on") for n in e.attrib)]
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_its_colours_are_the_common_palette():
    assert page.contents()["/web/theme.css"][0].decode() == css_variables()
