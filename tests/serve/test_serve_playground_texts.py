"""Texts of models, users and names on the page: shown whatever they are, and never more than text."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.serve.browser import launched
from tests.serve.playground import HOSTILE, answer, app_of, compare, opened, saying, send
from tests.serve.scripted_engine import ScriptedEngine
from tests.serve.serve_fixtures import running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def test_hostile_names_prompts_and_answers_are_text_and_nothing_else(browser: Browser):
    engine = ScriptedEngine(lambda prompt, adapter: [HOSTILE[i : i + 3] for i in range(0, len(HOSTILE), 3)], (HOSTILE,))
    with opened(browser, app_of(engine, name="base" + HOSTILE)) as page:
        scripts = page.locator("script").count()
        compare(page)
        send(page, HOSTILE)
        for side in "AB":
            expect(answer(page, side)).to_have_attribute("data-state", "done")
        answer(page, "B").get_by_role("button", name="request").click()
        page.get_by_role("button", name="Close").click()
        for place in ("#base", "#sides", ".turn .prompt p", ".answer .model", ".answer .text"):
            text = page.locator(place).first.inner_text()
            assert "⟨U+202E⟩dcba⟨U+2069⟩ ⟨U+001B⟩[31m" in text
            assert not set(text) & set("\u202e\u2069\x1b")
        expect(answer(page).locator(".text")).to_contain_text("<script>window.hit=1</script>")
        expect(answer(page).locator(".text")).to_contain_text("[red]x[/red]")
        assert page.locator("script").count() == scripts
        assert page.locator("main img").count() == 0
        assert page.evaluate("window.hit") is None
        links = page.locator(".text a").evaluate_all("links => links.map((a) => [a.textContent, a.href])")
        assert links == [["image: picture", "https://evil.test/a.png"]] * 2


def test_markdown_that_never_ends_or_nests_without_end_is_shown(browser: Browser):
    deep = ">" * 5000 + " deep - [x] [a](https://a.test)\n"
    said = [deep, "\n[open **bold `code", "\n\n| a |\n| - |\n| 1", " see [1] and [two](https://a.test) ![x](data:x)"]
    with opened(browser, app_of(ScriptedEngine(saying(*said)))) as page:
        send(page, "go")
        expect(answer(page)).to_have_attribute("data-state", "done")
        expect(answer(page).locator(".text")).to_contain_text("deep")
        assert answer(page).locator("blockquote").count() < 30


def test_brackets_are_brackets_unless_an_address_follows(browser: Browser):
    said = saying("as [1", "] and [two](", "https://a.test) say, [three")
    with opened(browser, app_of(ScriptedEngine(said))) as page:
        send(page, "go")
        expect(answer(page).locator(".text")).to_have_text("as [1] and two say, [three")
        assert page.locator(".text a").evaluate_all("links => links.map((a) => a.textContent)") == ["two"]


def test_the_browser_refuses_markup_from_text_on_this_page(browser: Browser):
    with running(app_of(ScriptedEngine(saying()))) as url:
        page = browser.new_page()
        page.goto(url)
        assert page.evaluate("try { document.body.innerHTML = '<b>'; 'done' } catch { 'refused' }") == "refused"
        page.close()
