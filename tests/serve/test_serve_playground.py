"""The chat of the page at `/` in headless Chromium: what a reader sees and does."""

import contextlib
import io
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from maypole import data
from maypole.core.errors import UserError
from maypole.data.rows import CHAT, PAIR
from maypole.engine import Engine
from tests.engine.engine_fixtures import lm_of
from tests.serve.browser import launched, violations
from tests.serve.playground import answer, app_of, compare, opened, saying, send, two, vote
from tests.serve.scripted_engine import ScriptedEngine
from tests.serve.serve_fixtures import wait_for


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def endless() -> Engine:
    """An engine whose model never says that it is done."""
    lm = lm_of(max_position_embeddings=100_000)
    lm.transformer.generation_config.eos_token_id = []
    return Engine(lm)


def downloaded(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as offered:
        page.get_by_role("button", name=name).click()
    path = folder / offered.value.suggested_filename
    offered.value.save_as(path)
    return path


def test_an_answer_grows_as_it_comes_and_then_says_what_it_took(browser: Browser):
    gates = [threading.Event() for _ in range(3)]
    engine = ScriptedEngine(saying("One ", gates[0], "two ", gates[1], "**three**", gates[2]))
    with opened(browser, app_of(engine)) as page:
        send(page, "count")
        text, facts = answer(page).locator(".text"), answer(page).locator(".numbers")
        for gate, said in zip(gates, ("One", "One two", "One two three")):
            expect(text).to_have_text(said)
            expect(facts).to_contain_text(f"{len(said.split())} tok")
            expect(answer(page)).to_have_attribute("data-state", "running")
            gate.set()
        expect(answer(page)).to_have_attribute("data-state", "done")
        expect(text.locator("strong")).to_have_text("three")
        expect(facts).to_have_text(re.compile(r"^3 tok · TTFT \d\.\d\d s · \d+ tok/s · \d+ cached · seed \d+ · stop$"))
        expect(page.get_by_role("status")).to_contain_text("A finished, 3 tokens")


def test_stop_ends_the_answer_at_the_server_and_frees_what_it_held(browser: Browser):
    engine = endless()
    with opened(browser, app_of(engine)) as page:
        page.locator("summary", has_text="Settings").click()
        page.locator("#set-max_tokens").fill("90000")
        send(page, "go on")
        expect(answer(page)).to_have_attribute("data-state", "running")
        wait_for(lambda: engine.stats()["kv_tokens"] > 0)
        page.get_by_role("button", name="Stop").click()
        expect(answer(page).locator(".numbers")).to_contain_text("stopped")
        wait_for(lambda: engine.stats()["running"] == 0)
        assert engine.stats()["kv_tokens"] == 0
        send(page, "again")
        expect(answer(page)).to_have_attribute("data-state", "running")
        page.keyboard.press("Escape")
        wait_for(lambda: engine.stats()["running"] == 0)


def test_a_column_asks_the_model_chosen_for_it_and_one_that_fails_leaves_the_other_whole(browser: Browser):
    def script(prompt: str, adapter: str | None) -> Sequence[Any]:
        return ["Bon", UserError("the adapter broke", "adapter", "a whole one")] if adapter else ["Good ", "day"]

    with opened(browser, app_of(two(script))) as page:
        bodies: list[dict] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        compare(page)
        send(page, "greet")
        expect(answer(page, "A").locator(".text")).to_have_text("Good day")
        expect(answer(page, "B").locator(".text")).to_have_text("Bon")
        expect(answer(page, "B").locator(".note")).to_contain_text("Cut off: adapter: the adapter broke")
        expect(answer(page, "A")).to_have_attribute("data-state", "done")
        page.get_by_label("Model A", exact=True).select_option("fr")
        page.get_by_label("Model B", exact=True).select_option("base")
        send(page, "and now")
        expect(answer(page, "B").locator(".text")).to_have_text("Good day")
    assert sorted(body["model"] for body in bodies[:2]) == ["base", "fr"]
    assert len({body["seed"] for body in bodies[:2]}) == 1
    # Each column goes on from what it said itself.
    said = {body["model"]: [message["content"] for message in body["messages"]] for body in bodies[2:]}
    assert said == {"fr": ["greet", "Good day", "and now"], "base": ["greet", "Bon", "and now"]}


def test_votes_and_kept_answers_are_rows_that_training_reads(browser: Browser, tmp_path: Path):
    engine = two(lambda prompt, adapter: [f"Oui\u202e {prompt.count('[user]')}" if adapter else "Yes"])
    with opened(browser, app_of(engine)) as page:
        compare(page)
        page.locator("summary", has_text="Settings").click()
        page.get_by_label("system").fill("Be brief.")
        send(page, "first")
        vote(page, "B better")
        send(page, "second")
        vote(page, "A better")
        send(page, "third")
        vote(page, "same")
        answer(page, "B").get_by_role("button", name="save").click()
        expect(page.locator("#count")).to_have_text("Collected: 2 preferences, 1 as good, 1 conversation")
        pairs = data.read(str(downloaded(page, "Download preferences", tmp_path)), PAIR)
        chats = data.read(str(downloaded(page, "Download conversations", tmp_path)), CHAT)
    system, first, second = ({"role": r, "content": c} for r, c in
                             (("system", "Be brief."), ("user", "first"), ("user", "second")))  # fmt: skip
    yes, oui, oui_again = ({"role": "assistant", "content": c} for c in ("Yes", "Oui\u202e 1", "Oui\u202e 2"))
    assert pairs[0]["prompt"] == [system, first]
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ([oui], [yes])
    assert (pairs[0]["chosen_model"], pairs[0]["rejected_model"]) == ("fr", "base")
    # Where conversations went apart before, the row begins where they did.
    assert pairs[1]["prompt"] == [system, first]
    assert (pairs[1]["chosen"], pairs[1]["rejected"]) == ([yes, second, yes], [oui, second, oui_again])
    assert [m["content"] for m in chats[0]["messages"]][-2:] == ["third", "Oui\u202e 3"]


def test_a_blind_comparison_tells_the_names_after_the_vote(browser: Browser):
    engine = two(lambda prompt, adapter: ["Oui" if adapter else "Yes"])
    with opened(browser, app_of(engine)) as page:
        compare(page)
        page.get_by_label("blind").check()
        expect(page.locator("#sides")).not_to_contain_text("fr")
        send(page, "well?")
        expect(page.get_by_role("group", name="Which answer is better?")).to_be_visible()
        expect(page.locator(".answer .model")).to_have_text(["hidden", "hidden"])
        oui = "A" if "Oui" in answer(page, "A").inner_text() else "B"
        page.get_by_role("button", name=f"{oui} better").click()
        expect(answer(page, oui).locator(".model")).to_have_text("fr")


def test_the_request_shown_gives_the_same_answer_from_elsewhere(browser: Browser):
    engine = ScriptedEngine(lambda prompt, adapter: [f"<{prompt}>"])
    prompt = "it's \"quoted\", \\n and \u202e hidden \U000e0041"
    with opened(browser, app_of(engine)) as page:
        page.locator("summary", has_text="Settings").click()
        page.get_by_label("stop").fill("\\n\\n")
        send(page, prompt)
        expect(answer(page)).to_have_attribute("data-state", "done")
        answer(page).get_by_role("button", name="request").click()
        curl, python = page.locator("#request-text pre").all_inner_texts()
        assert "\u202e" not in curl + python
        words = shlex.split(curl.replace("\\\n", " "))
        flags = dict(zip(words[3::2], words[4::2]))
        told = httpx.post(words[2], content=flags["-d"], headers=dict([flags["-H"].split(": ")])).text
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(python, "shown", "exec"), {})
    assert said.getvalue() == f"<[user]{prompt}[assistant]>"
    assert json.dumps(prompt, ensure_ascii=False)[1:-1] in told
    assert len({tuple(request.prompt) for request in engine.asked}) == 1
    assert len({request.sampling for request in engine.asked}) == 1


def test_a_setting_out_of_its_range_is_shown_before_anything_is_sent(browser: Browser):
    engine = ScriptedEngine(saying("ok"))
    with opened(browser, app_of(engine)) as page:
        page.locator("summary", has_text="Settings").click()
        page.locator("#set-top_p").fill("2")
        page.locator("summary", has_text="Settings").click()
        send(page, "go")
        expect(page.locator("#set-top_p")).to_be_focused()
        assert engine.asked == []


def test_enter_sends_but_not_within_a_composition_and_shift_enter_breaks_the_line(browser: Browser):
    engine = ScriptedEngine(saying("ok"))
    with opened(browser, app_of(engine)) as page:
        page.get_by_label("Message").fill("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.evaluate(
            "document.getElementById('message').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
        )
        expect(page.locator(".turn")).to_have_count(0)
        page.keyboard.press("Enter")
        expect(page.locator(".turn .prompt p")).to_have_text("one\ntwo", use_inner_text=True)


def test_who_reads_the_end_follows_it_and_who_scrolled_up_is_left_there(browser: Browser):
    gates = [threading.Event() for _ in range(2)]
    long = "word\n\n" * 80
    engine = ScriptedEngine(saying(long, gates[0], long, gates[1], long))
    with opened(browser, app_of(engine)) as page:
        send(page, "go")
        place = "(({scrollTop, scrollHeight, clientHeight}) => [scrollTop, scrollHeight - scrollTop - clientHeight])"
        where: Callable[[], list[float]] = lambda: page.evaluate(f"{place}(document.getElementById('log'))")  # noqa: E731
        expect(answer(page).locator(".text p")).to_have_count(80)
        assert where()[1] < 2
        page.evaluate("document.getElementById('log').scrollTop = 100")
        gates[0].set()
        expect(answer(page).locator(".text p")).to_have_count(160)
        assert where()[0] == 100
        page.get_by_role("button", name="latest").click()
        gates[1].set()
        expect(answer(page).locator(".text p")).to_have_count(240)
        expect(answer(page)).to_have_attribute("data-state", "done")
        assert where()[1] < 2


def test_every_state_of_the_chat_is_accessible_fits_narrow_screens_and_needs_no_mouse(browser: Browser):
    gate = threading.Event()

    def script(prompt: str, adapter: str | None) -> Sequence[Any]:
        table, code = "| a | b |\n| - | - |\n| 1 | 2 |\n", "```\ncode\n```\n"
        rich = f"# Head\n\n- a\n- [x] b\n\n{table}\n{code}> [quote](https://a.test) `x`\n"
        return [rich, gate, "end"] if adapter is None else [rich, UserError("broke", "it", "whole")]

    with opened(browser, app_of(two(script))) as page:

        def looked_at() -> None:
            assert violations(page) == []
            for width in (320, 390, 1280):
                page.set_viewport_size({"width": width, "height": 800})
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 0, width

        looked_at()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the conversation")).to_be_focused()
        reach(page, "+ column", "Space")
        reach(page, "Settings", "Enter")
        reach(page, "Message")
        page.keyboard.type("go")
        page.keyboard.press("Enter")
        expect(answer(page, "B")).to_have_attribute("data-state", "failed")
        expect(answer(page, "A")).to_have_attribute("data-state", "running")
        looked_at()
        gate.set()
        expect(page.get_by_role("group", name="Which answer is better?")).to_be_visible()
        reach(page, "save A", "Enter")
        reach(page, "A better", "Space")
        expect(page.locator("#count")).to_contain_text("1 preference, 0 as good, 1 conversation")
        looked_at()
        reach(page, "request A", "Enter")
        looked_at()
        page.keyboard.press("Escape")
        reach(page, "New chat", "Enter")
        expect(page.locator(".turn")).to_have_count(0)


NAME = "e => e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || ''"


def reach(page: Page, name: str, key: str | None = None) -> None:
    """Go to the control `name` by the Tab key and press `key` there."""
    for _ in range(80):
        if page.evaluate(f"({NAME})(document.activeElement)").strip().startswith(name):
            break
        page.keyboard.press("Tab")
    else:
        pytest.fail(f"no Tab leads to {name}")
    if key is not None:
        page.keyboard.press(key)
