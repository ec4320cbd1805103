import base64
import dataclasses
import hashlib
import re

import html5lib
import pytest

from maypole.core.statistics import Interval
from maypole.tour.report import Example, Measure, Plot, Report, Stage, Table, held_out_loss, page, render, write

HOSTILE = (
    "<script>boom()</script><img src=x onerror=boom()> javascript:boom() \u202edcba\u2069 \x1b[31m\x00 [red]{{7*7}}"
)
STAGES = ["curate", "adapt", "align", "edit", "interpret", "compress", "retrieve", "serve", "evaluate"]


def measure(**changes) -> Measure:
    fields = {
        "name": "corpus perplexity",
        "before": 14.2,
        "after": 9.8,
        "interval": Interval(-4.9, -3.9, -4.4),
        "n": 412,
    }
    return Measure(**{**fields, "better": "lower", "digits": 1, **changes})


def report(**changes) -> Report:
    stages = [Stage(name=name, number=i) for i, name in enumerate(STAGES, 1)]
    fields = {"title": "maypole tour", "model": "base", "corpus": "docs", "date": "2026-01-01", "seconds": 312.0}
    return Report(**{**fields, "peak_rss": 2_100_000_000, "state": "complete", "stages": stages, **changes})


@pytest.fixture(scope="module")
def full() -> Report:
    plot = held_out_loss([0, 1000, 2000], [3.1, 2.8, 2.6], 3.12)
    stage = Stage(
        name="adapt",
        number=2,
        state="done",
        seconds=61,
        finding="Less surprised.",
        plots=[plot, plot],
        table=Table(columns=("measure", "base"), rows=[("perplexity", 14.2), ("none", None)], caption="Numbers"),
        examples=[Example(label="random (seed 0)", prompt="p", before="the old man", after="the new man")],
        repeat_command="maypole train sft --config 02-adapt/config.yaml",
        repeat_python="fit()",
        provenance=[("seed", "0")],
    )
    return report(measures=[measure()], stages=[stage])


def parsed(text: str):
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def words(text: str) -> str:
    return " ".join("".join(parsed(text).find("body").itertext()).split())


def test_a_full_report_is_valid_html_with_landmarks_and_one_h1(full):
    root = parsed(render(full))
    assert [len(root.findall(f".//{tag}")) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    links = {a.get("href")[1:] for a in root.iter("a")}
    assert links <= {e.get("id") for e in root.iter() if e.get("id")}
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_equal_reports_render_to_equal_bytes(full):
    assert render(full) == render(dataclasses.replace(full))


def test_the_policy_allows_the_style_sheet_and_nothing_else(full):
    root = parsed(render(full))
    styles = list(root.iter("style"))
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].text.encode()).digest()).decode()
    found = [m.get("content") for m in root.iter("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert found == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]
    assert not [e for e in root.iter() if e.get("style")]


def test_nothing_in_the_page_refers_to_another_host(full):
    root = parsed(render(full))
    targets = [e.get(a) for e in root.iter() for a in ("href", "src", "{http://www.w3.org/1999/xlink}href") if e.get(a)]
    assert all(t.startswith(("#", "data:")) for t in targets)


def test_hostile_text_is_inert_wherever_it_stands():
    plot = held_out_loss([1, 2], [3.0, 2.0], 3.0)
    plot = dataclasses.replace(plot, title=HOSTILE, finding=HOSTILE, table=Table(columns=(HOSTILE,), rows=[(HOSTILE,)]))
    stage = Stage(
        name="adapt",
        number=2,
        state="failed",
        finding=HOSTILE,
        plots=[plot],
        table=Table(columns=(HOSTILE,), rows=[(HOSTILE,)], caption=HOSTILE),
        examples=[
            Example(label=HOSTILE, prompt=HOSTILE, before=HOSTILE, after=HOSTILE + " changed"),
            Example(label="alone", after=HOSTILE),
        ],
        repeat_command=HOSTILE,
        repeat_python=HOSTILE,
        provenance=[(HOSTILE, HOSTILE)],
        error=HOSTILE,
        log=[HOSTILE],
    )
    text = render(
        report(
            title=HOSTILE, model=HOSTILE, corpus=HOSTILE, date=HOSTILE, state="failed", resume_command=HOSTILE,
            measures=[measure(name=HOSTILE, unit=HOSTILE)], stages=[stage],
        )
    )  # fmt: skip
    root = parsed(text)
    assert not list(root.iter("script"))
    assert not list(root.iter("img"))
    assert not [name for e in root.iter() for name in e.attrib if str(name).startswith("on")]
    assert not [e for e in root.iter("a") if not e.get("href").startswith("#")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", text)
    assert words(text).count("⟨U+202E⟩") > 15
    assert "49" not in words(text).replace("⟨U+2069⟩", "").split()


def test_changed_words_are_struck_and_underlined(full):
    root = parsed(render(full))
    assert [e.text for e in root.iter("del")] == ["old"]
    assert [e.text for e in root.iter("ins")] == ["new"]


def test_a_plot_has_its_finding_as_its_name_and_its_numbers_beside_it(full):
    root = parsed(render(full))
    figure = next(root.iter("figure"))
    picture = next(e for e in figure.iter("div") if e.get("role") == "img")
    assert picture.get("aria-label").startswith("Held-out loss fell from 3.120 (base) to 2.600")
    assert [td.text for td in figure.find("details").iter("td")][:2] == ["base", "3.12"]


def test_wide_tables_stand_in_focusable_named_scrollers(full):
    scrollers = [e for e in parsed(render(full)).iter("div") if e.get("class") == "scroll"]
    assert len(scrollers) == 3
    assert all(e.get("tabindex") == "0" and e.get("role") == "region" and e.get("aria-label") for e in scrollers)


def test_the_verdict_counts_what_the_intervals_allow():
    found = report(
        measures=[
            measure(),
            measure(interval=Interval(-1, 1, 0)),
            measure(interval=Interval(1, 2, 1.5)),
            measure(interval=None),
        ]
    )
    assert found.verdict == "of 4 measures 1 better, 1 no clear change, 1 worse, 1 not tested"
    assert "Of 4 measures 1 better, 1 no clear change, 1 worse, 1 not tested." in words(render(found))


def test_the_dot_plot_puts_better_to_the_right_whatever_the_direction():
    lower, higher = page._dot(measure()), page._dot(measure(better="higher"))
    assert lower["at"] > 100 > higher["at"]
    assert (lower["low"], lower["high"]) == (round(100 + 90 * 3.9 / 4.9, 1), 190.0)
    assert page._dot(measure(interval=Interval(float("-inf"), float("inf"), -4.4)))["low"] is None
    assert page._dot(measure(after=14.2, interval=Interval(0, 0, 0))) == {"at": 100.0, "low": 100.0, "high": 100.0}


def test_the_change_stands_with_its_interval_and_a_real_minus():
    assert "−4.4 [−4.9, −3.9]" in words(render(report(measures=[measure()])))


@pytest.mark.parametrize(
    ("state", "stage", "says"),
    [
        ("complete", {"state": "done"}, "✓ COMPLETE"),
        ("running", {"state": "running"}, "◐ RUNNING ADAPT"),
        ("running", {"state": "not yet", "repeat_command": "maypole adapt"}, "or alone by: maypole adapt"),
        ("failed", {"state": "failed", "error": "no memory"}, "This run failed at adapt."),
        ("complete", {"state": "empty"}, "0 rows passed"),
        ("interrupted", {"state": "interrupted"}, "✗ STOPPED AT ADAPT"),
    ],
)
def test_every_state_says_its_word(state, stage, says):
    text = render(
        report(state=state, resume_command="maypole tour --out run", stages=[Stage(name="adapt", number=2, **stage)])
    )
    assert says in words(text)
    assert ("Continue with: maypole tour --out run" in words(text)) == (state in ("failed", "interrupted"))


def test_a_failed_stage_shows_the_last_twenty_lines_of_its_log():
    stage = Stage(name="adapt", number=2, state="failed", log=[f"line {i}." for i in range(50)])
    text = words(render(report(state="failed", stages=[stage])))
    assert "line 30." in text
    assert "line 29." not in text


def test_a_run_without_measures_says_so():
    assert "No measure yet" in words(render(report()))


def test_a_long_example_is_folded_and_its_end_counted():
    stage = Stage(name="adapt", number=2, state="done", examples=[Example(label="long", after="x" * 10_000)])
    root = parsed(render(report(stages=[stage])))
    texts = ["".join(e.itertext()) for e in root.iter("div") if e.get("class") == "text"]
    assert list(map(len, texts)) == [1_200, 3_000]
    assert "5,800 further characters" in "".join(root.find("body").itertext())


def test_a_report_full_of_long_examples_stays_under_three_megabytes():
    example = Example(label="long", prompt="<" * 5_000, before="<é " * 5_000, after="é< " * 5_000)
    stages = [Stage(name=n, number=i, state="done", examples=[example] * 8) for i, n in enumerate(STAGES, 1)]
    assert len(render(report(stages=stages)).encode()) < 3_000_000


def test_long_tables_are_cut_and_say_so():
    stage = Stage(
        name="edit", number=4, state="done", table=Table(columns=("fact",), rows=[(i,) for i in range(1_000)])
    )
    text = words(render(report(stages=[stage])))
    assert "800 further rows" in text
    assert "no rows" in words(render(report(stages=[Stage(name="e", number=4, table=Table(columns=("a",), rows=[]))])))


def test_limits_of_a_stage_are_errors_that_name_it():
    plot = Plot(title="p", finding="f", svg="<svg/>", table=Table(columns=(), rows=[]))
    with pytest.raises(ValueError, match="stage adapt: 3 plots, at most 2"):
        Stage(name="adapt", number=2, plots=[plot] * 3)
    with pytest.raises(ValueError, match="stage adapt: 9 examples, at most 8"):
        Stage(name="adapt", number=2, examples=[Example(label="", after="")] * 9)
    with pytest.raises(ValueError, match="1 cells in a row of 2 columns"):
        Table(columns=("a", "b"), rows=[(1,)])
    heavy = dataclasses.replace(plot, svg=f"<svg><text>{'x' * 61_000}</text></svg>")
    with pytest.raises(ValueError, match="at most 60,000: draw fewer points"):
        render(report(stages=[Stage(name="adapt", number=2, plots=[heavy])]))


def test_writing_replaces_the_page_whole_and_leaves_nothing_beside_it(tmp_path, full, monkeypatch):
    path = write(report(), tmp_path / "report.html")
    before = path.read_bytes()
    monkeypatch.setattr(page.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(full, path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write(full, path)
    assert path.read_text(encoding="utf-8") == render(full)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
