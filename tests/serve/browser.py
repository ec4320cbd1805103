"""Headless Chromium for the page's tests: one for all of them, a fresh profile for each, and what may never happen."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, sync_playwright

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
HINT = "no Chromium: apt-get install chromium"
REFUSED = "Failed to load resource"
"""How the browser's console tells of an answer that is an error, which a page cannot prevent."""


def found() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser; where there is none the test is skipped, or fails under MAYPOLE_BROWSER=required."""
    path = found()
    if path is None:
        if os.environ.get("MAYPOLE_BROWSER") == "required":
            pytest.fail(HINT)
        pytest.skip(HINT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page in a profile of its own; afterwards nothing was thrown, logged as an error, or asked of another host."""
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    wrong: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(f"asked for {request.url}")

    page.on("request", asked)
    page.on("pageerror", lambda error: wrong.append(f"threw {error}"))
    page.on("console", lambda message: wrong.append(message.text) if _error(message) else None)
    try:
        yield page
    finally:
        context.close()
    assert not wrong, wrong


def _error(message: Any) -> bool:
    return message.type in ("error", "warning") and REFUSED not in message.text


def violations(page: Page) -> list[str]:
    """What axe finds wrong in either theme, as rule and place."""
    said = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}}).response["violations"]
        said += [f"{rule['id']} in {scheme}: {node['target']} {node['failureSummary']}"
                 for rule in found for node in rule["nodes"]]  # fmt: skip
    return said
