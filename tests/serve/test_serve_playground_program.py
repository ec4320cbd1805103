"""The picture of a program as it runs, in headless Chromium: the engine says what a test lets it say."""

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from maypole.core.errors import UserError
from maypole.engine import Engine
from tests.engine.engine_fixtures import lm_of
from tests.serve.browser import launched, violations
from tests.serve.playground import HOSTILE, app_of, opened
from tests.serve.scripted_engine import ScriptedEngine

BOXES = """boxes => boxes.map(box => ({
    name: box.dataset.name, state: box.dataset.state, left: box.offsetLeft, top: box.offsetTop,
    lines: [...box.querySelectorAll('b, .line')].map(line => line.textContent),
}))"""
ROWS = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


class Gated(ScriptedEngine):
    """Each call of the map-reduce example waits for its gate."""

    def __init__(self) -> None:
        self.gates = {"map": threading.Event(), "reduce": threading.Event()}
        super().__init__(self._script)

    def _script(self, prompt: str, adapter: str | None) -> Sequence[Any]:
        return [self.gates["reduce" if "Summaries of the parts" in prompt else "map"], " Short", " text."]


def boxes(page: Page) -> list[dict[str, Any]]:
    return page.locator(".box").evaluate_all(BOXES)


def rows(page: Page) -> list[list[str]]:
    return page.locator("#calls tr").evaluate_all(ROWS)


def states(page: Page, name: str) -> set[str]:
    return {box["state"] for box in boxes(page) if box["name"] == name}


def same_facts(page: Page) -> None:
    """What the boxes say, the table says."""
    drawn = sorted((box["lines"][0][2:], box["lines"][1], box["lines"][2].split(" · ")[0]) for box in boxes(page))
    told = sorted((row[0], row[2][2:], row[3]) for row in rows(page))
    assert drawn == told
    reused = [line for box in boxes(page) for line in box["lines"] if line.startswith("reused")]
    assert sorted(reused) == sorted(row[4] for row in rows(page) if row[4])


def test_a_program_is_seen_waiting_running_and_done_and_nothing_in_its_picture_moves(browser: Browser):
    engine = Gated()
    with opened(browser, app_of(engine), "#program") as page:
        expect(page.locator("#program-empty")).to_be_visible()
        page.get_by_role("button", name="Run", exact=True).click()
        running = page.locator(".box[data-name=map][data-state=running]")
        expect(running).to_have_count(6)
        expect(page.locator(".box[data-name=reduce]")).to_contain_text("waits for s_1, s_2, s_3 …")
        before = boxes(page)
        maps = [box for box in before if box["name"] == "map"]
        (reduce,) = [box for box in before if box["name"] == "reduce"]
        assert len({box["left"] for box in maps}) == 1
        assert len({box["top"] for box in maps}) == 6
        assert reduce["left"] > maps[0]["left"]
        assert min(box["top"] for box in maps) < reduce["top"] < max(box["top"] for box in maps)
        assert page.locator("#graph path[data-state=waiting]").count() == 6
        same_facts(page)
        engine.gates["map"].set()
        expect(page.locator(".box[data-name=reduce][data-state=running]")).to_have_count(1)
        assert states(page, "map") == {"done"}
        assert page.locator("#graph path[data-state=done]").count() == 6
        same_facts(page)
        engine.gates["reduce"].set()
        expect(page.locator("#results .result")).to_have_text("Short text.")
        expect(page.locator("#run-rows tr")).to_have_count(1)
        same_facts(page)
        where = [{(box["name"], box["left"], box["top"]) for box in found} for found in (before, boxes(page))]
        assert where[0] == where[1]
        expect(page.get_by_role("status")).to_contain_text("7 done")
        times = page.locator("#calls tr .unseen").first.text_content()
        assert re.fullmatch(r"waited \d.*, queued \d.*, prefill \d.*, decode \d\.\d\d s", times or "")


def test_what_is_computed_once_for_all_is_counted_beside_a_run_that_shares_nothing(browser: Browser):
    with opened(browser, app_of(Engine(lm_of(max_position_embeddings=100_000))), "#program") as page:
        page.get_by_label("max_tokens").last.fill("2")
        for count, name in enumerate(("Run", "Run without sharing"), 1):
            page.get_by_role("button", name=name, exact=True).click()
            expect(page.locator("#run-rows tr")).to_have_count(count)
        shared, alone = page.locator("#run-rows tr").evaluate_all(ROWS)
    assert (shared[0], alone[0]) == ("map-reduce, sharing", "map-reduce, without sharing")
    computed, reused = (int(text.replace(",", "")) for text in shared[1:3])
    assert reused > 1000
    assert alone[1:3] == [f"{computed + reused:,}", "0"]


def calls(session: dict, count: int, name: str, **more: Any) -> dict[str, Any]:
    output = {"name": "out", "is_output": True, "sampling": {"max_tokens": 4}}
    one = {"template": "say {{out}}", "parameters": [output], "name": name, "models": [], **more}
    return {"session_id": session["session_id"], "calls": [one] * count}


class Elsewhere:
    """A session that another client opened at the page's server."""

    def __init__(self, page: Page) -> None:
        url = page.url.split("#")[0]
        self.http = httpx.Client(base_url=url)
        self.session = self.http.post("v1/sessions", json={}).json()
        self.http.headers["X-Session-Auth"] = self.session["session_auth"]

    def submit(self, count: int, name: str) -> None:
        answer = self.http.post("v1/semantic_calls/batch", json=calls(self.session, count, name))
        assert answer.status_code == 200, answer.text

    def end(self) -> None:
        self.http.delete(f"v1/sessions/{self.session['session_id']}")

    def watched_in(self, page: Page) -> None:
        page.locator("summary", has_text="Watch another session").click()
        page.get_by_label("session", exact=True).fill(self.session["session_id"])
        page.get_by_label("its secret").fill(self.session["session_auth"])
        page.get_by_role("button", name="Watch", exact=True).click()


def test_over_twelve_alike_are_one_box_that_counts_them(browser: Browser):
    gate = threading.Event()
    engine = ScriptedEngine(lambda prompt, adapter: [gate, "x"])
    with opened(browser, app_of(engine), "#program") as page:
        elsewhere = Elsewhere(page)
        elsewhere.submit(12, "read")
        elsewhere.watched_in(page)
        expect(page.locator(".box[data-name=read]")).to_have_count(12)
        first = min((box["top"], box["left"]) for box in boxes(page))
        elsewhere.submit(1, "read")
        elsewhere.submit(1, "write")
        expect(page.locator(".box[data-name=read]")).to_have_count(1)
        expect(page.locator(".box[data-name=read]")).to_contain_text("read ×1313 running")
        assert violations(page) == []
        expect(page.locator(".box[data-name=write]")).to_have_count(1)
        assert next((b["top"], b["left"]) for b in boxes(page) if b["name"] == "read") == first
        assert len(rows(page)) == 14
        gate.set()
        expect(page.locator(".box[data-name=read]")).to_contain_text("13 done")
        elsewhere.end()
        expect(page.locator("#program-state")).to_have_text("The session has ended.")


def test_who_only_watches_leaves_a_server_that_shuts_down(browser: Browser):
    engine = ScriptedEngine(lambda prompt, adapter: ["x"])
    app = app_of(engine)
    with opened(browser, app, "#program") as page:
        elsewhere = Elsewhere(page)
        elsewhere.submit(1, "read")
        elsewhere.watched_in(page)
        expect(page.locator(".box[data-state=done]")).to_have_count(1)
        app.state.ending.draining = True
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#program-state")).to_have_text("The server is shutting down.")
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible()


def test_a_lost_connection_is_taken_up_again_with_a_new_snapshot(browser: Browser):
    gate = threading.Event()
    engine = ScriptedEngine(lambda prompt, adapter: [gate, "x"])
    with opened(browser, app_of(engine), "#program") as page:
        elsewhere = Elsewhere(page)
        elsewhere.submit(1, "read")
        graph = f"v1/sessions/{elsewhere.session['session_id']}/graph"
        snapshot = elsewhere.http.get(graph).text
        body = f"data: {snapshot}\n\n"
        page.route(f"**/{graph}*", lambda route: route.fulfill(content_type="text/event-stream", body=body), times=2)
        elsewhere.watched_in(page)
        expect(page.locator("#program-state")).to_have_text(re.compile(r"connection is lost\. Asking again in \d s"))
        expect(page.locator(".box")).to_have_count(1)
        elsewhere.submit(1, "write")
        expect(page.locator(".box")).to_have_count(2)
        gate.set()
        expect(page.locator(".box[data-state=done]")).to_have_count(2)


def test_a_failed_call_is_told_with_its_cause_and_what_hostile_names_say_is_text(browser: Browser):
    def script(prompt: str, adapter: str | None) -> Sequence[Any]:
        return [UserError(HOSTILE, "it", "another")]

    name = "<script>window.hit=1</script><img src=x onerror=window.hit=1>[red] \u202edcba\u2069 \x1b[31m"
    with opened(browser, app_of(ScriptedEngine(script)), "#program") as page:
        elsewhere = Elsewhere(page)
        elsewhere.submit(1, name)
        elsewhere.watched_in(page)
        expect(page.locator(".box")).to_have_attribute("data-state", "failed")
        for text in (page.locator(".box").inner_text(), rows(page)[0][0], rows(page)[0][2]):
            assert "<script>window.hit=1</script>" in text
            assert not set(text) & set("\u202e\u2069\x1b")
        assert page.evaluate("window.hit") is None
        assert rows(page)[0][2].startswith("✗ failed: <script>")
        assert violations(page) == []


def test_the_program_is_accessible_in_every_state_and_a_table_alone_on_narrow_screens(browser: Browser):
    engine = Gated()
    with opened(browser, app_of(engine), "#program") as page:

        def looked_at() -> None:
            assert violations(page) == []
            for width in (320, 390, 1280):
                page.set_viewport_size({"width": width, "height": 800})
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 0, width
                expect(page.locator("#graph")).to_be_visible(visible=width > 600 and page.locator(".box").count() > 0)

        looked_at()
        page.get_by_role("button", name="Run", exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.locator(".box[data-state=running]")).to_have_count(6)
        looked_at()
        for gate in engine.gates.values():
            gate.set()
        expect(page.locator("#results .result")).to_be_visible()
        looked_at()
        assert page.locator("#graph").get_attribute("aria-hidden") == "true"
        focusable = "#graph :is(a, button, input, select, textarea, [tabindex])"
        assert page.locator(focusable).count() == 0
