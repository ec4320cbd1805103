"""What the tests of the page share: a server opened in the browser, and the worst that a text can hold."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect

from maypole.engine import Engine
from maypole.serve.app import create_app
from tests.serve.browser import watched
from tests.serve.scripted_engine import Script, ScriptedEngine
from tests.serve.serve_fixtures import running

HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror=window.hit=1> [link](javascript:window.hit=1) "
    "![picture](https://evil.test/a.png) [red]x[/red] \u202edcba\u2069 \x1b[31m"
)


@contextmanager
def opened(browser: Browser, app: Any, path: str = "", **options: Any) -> Iterator[Page]:
    """The page of `app` once it knows what is served."""
    with running(app) as url, watched(browser, url, viewport={"width": 1280, "height": 800}, **options) as page:
        page.goto(f"{url}/{path}")
        expect(page.locator("#skeleton")).to_have_count(0)
        yield page


def app_of(engine: Engine, name: str = "base", **options: Any) -> Any:
    return create_app(engine, name=name, **options)


def saying(*pieces: "str | threading.Event | Exception") -> Script:
    return lambda prompt, adapter: pieces


def two(script: Script) -> ScriptedEngine:
    return ScriptedEngine(script, ("fr",))


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answer(page: Page, side: str = "A") -> Any:
    return page.get_by_role("article", name=f"Answer {side}").last


def compare(page: Page) -> None:
    page.get_by_role("button", name="+ column").click()


def vote(page: Page, which: str) -> None:
    """Vote on the last turn."""
    button = page.locator(".turn").last.get_by_role("button", name=which, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
