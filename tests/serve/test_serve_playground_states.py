"""What the page says when things are not as they should be: no key, no room, no server."""

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from maypole.engine import Engine
from maypole.serve.guard import Limits
from tests.serve.browser import launched, violations, watched
from tests.serve.playground import answer, app_of, compare, opened, saying, send, two, vote
from tests.serve.scripted_engine import ScriptedEngine
from tests.serve.serve_fixtures import running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def test_a_model_without_a_template_completes_texts_and_says_why(browser: Browser):
    engine = ScriptedEngine(saying(" upon a time"), template=False)
    with opened(browser, app_of(engine)) as page:
        expect(page.locator("#hint")).to_contain_text("no chat template")
        expect(page.locator("#hint")).to_contain_text("No adapters are served")
        assert violations(page) == []
        page.get_by_label("Text to go on from").fill("Once")
        page.keyboard.press("Enter")
        expect(answer(page).locator(".text")).to_have_text("upon a time")
    assert engine.tokenizer.decode(engine.asked[0].prompt, skip_special_tokens=True) == "Once"


def test_the_chat_its_settings_and_its_rows_survive_a_reload_and_an_answer_cut_by_it_is_told_so(browser: Browser):
    gate = threading.Event()
    engine = two(lambda prompt, adapter: ["said ", *([gate] if "wait" in prompt else []), f"{adapter}"])
    with opened(browser, app_of(engine)) as page:
        compare(page)
        page.locator("summary", has_text="Settings").click()
        page.get_by_label("temperature").fill("0.25")
        send(page, "first")
        vote(page, "A better")
        send(page, "wait")
        expect(answer(page, "A").locator(".text")).to_have_text("said")
        page.get_by_label("Message").fill("half a thought")
        page.reload()
        expect(page.locator(".turn")).to_have_count(2)
        expect(answer(page, "B").locator(".note")).to_contain_text("Cut off: a reload")
        expect(page.get_by_label("Message")).to_have_value("half a thought")
        expect(page.locator("#set-temperature")).to_have_value("0.25")
        expect(page.locator("#count")).to_contain_text("1 preference,")
        gate.set()
        answer(page, "B").get_by_role("button", name="retry").click()
        expect(answer(page, "B").locator(".text")).to_have_text("said fr")


def test_a_chat_that_is_too_long_says_that_a_reload_will_lose_it(browser: Browser):
    engine = ScriptedEngine(saying("a" * 210_000))
    with opened(browser, app_of(engine)) as page:
        expect(page.locator("#long")).to_be_hidden()
        send(page, "first")
        expect(page.locator("#long")).to_be_visible()
        page.reload()
        expect(page.locator("#log .empty")).to_be_visible()


def test_a_key_is_asked_for_once_and_kept_for_the_tab(browser: Browser):
    engine = ScriptedEngine(saying("hello"))
    with running(app_of(engine, keys=("right",))) as url, watched(browser, url) as page:
        page.goto(url)
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        assert violations(page) == []
        page.get_by_label("API key").fill("right")
        page.keyboard.press("Enter")
        expect(page.locator("#base")).to_have_text("base")
        page.reload()
        send(page, "hi")
        expect(answer(page).locator(".text")).to_have_text("hello")
        answer(page).get_by_role("button", name="request").click()
        expect(page.locator("#request-text")).to_contain_text('"Authorization: Bearer $MAYPOLE_KEY"')
        expect(page.locator("#request-text")).not_to_contain_text("right")
    with running(app_of(engine, keys=("right",))) as url, watched(browser, url) as page:
        page.goto(url)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#banner")).to_contain_text("a valid API key is needed")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_label("API key")).to_be_visible()


def test_a_full_queue_is_waited_for_with_a_countdown(browser: Browser):
    gate = threading.Event()
    engine = two(lambda prompt, adapter: [gate, "came"])
    engine.stats = lambda: {**Engine.stats(engine), "kv_budget": 1}  # nothing runs: all of them wait
    with opened(browser, app_of(engine, limits=Limits(max_queue=1))) as page:
        compare(page)
        send(page, "both")
        full = page.locator(".answer .note", has_text=re.compile(r"the queue is full .*; asking again in \d s"))
        expect(full).to_have_count(1)
        assert violations(page) == []
        gate.set()
        for side in "AB":
            expect(answer(page, side).locator(".text")).to_have_text("came")


def test_a_server_that_shuts_down_says_so_and_the_answer_under_way_is_told_to_be_cut(browser: Browser):
    gate = threading.Event()
    engine = ScriptedEngine(saying("some ", gate))
    app = app_of(engine)
    with opened(browser, app) as page:
        send(page, "go")
        expect(answer(page).locator(".text")).to_have_text("some")
        app.state.ending.draining = True
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#state")).to_have_text("◐ shutting down")
        expect(page.locator("#banner")).to_contain_text("nothing new is begun")
        assert violations(page) == []
        gate.set()
        expect(answer(page)).to_have_attribute("data-state", "done")
        send(page, "more")
        expect(answer(page).locator(".note")).to_have_text("✗ No answer: the server is shutting down")


def test_a_cut_connection_keeps_the_text_and_a_server_that_is_gone_is_looked_for(browser: Browser):
    engine = ScriptedEngine(saying("whole"))
    with opened(browser, app_of(engine)) as page:
        body = 'data: {"choices": [{"delta": {"content": "a beginning"}, "finish_reason": null}]}\n\n'
        page.route("**/completions", lambda r: r.fulfill(content_type="text/event-stream", body=body), times=1)
        send(page, "go")
        expect(answer(page).locator(".text")).to_have_text("a beginning")
        expect(answer(page).locator(".note")).to_contain_text("Cut off: the connection ended before the answer did")
        page.context.set_offline(True)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#banner")).to_have_text(re.compile(r"does not answer. Asking again every \d+ s"))
        expect(page.locator("#state")).to_have_text("✗ not answering")
        assert violations(page) == []
        send(page, "again")
        expect(answer(page).locator(".note")).to_have_text("✗ No answer: the server does not answer")
        page.context.set_offline(False)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#banner")).to_be_hidden()
        answer(page).get_by_role("button", name="retry").click()
        expect(answer(page).locator(".text")).to_have_text("whole")


def test_an_empty_answer_says_that_it_is_empty(browser: Browser):
    with opened(browser, app_of(ScriptedEngine(saying()))) as page:
        send(page, "nothing")
        expect(answer(page)).to_contain_text("An empty answer")
        assert violations(page) == []
        expect(answer(page).locator(".numbers")).to_contain_text("0 tok")
