"""One file that shows a run: no script, nothing fetched, readable on a phone, by keyboard and by ear.

`render` is a pure function of the report: equal reports give equal bytes. Every text is shown as text: autoescaped,
with control and bidi characters as codes. Knows nothing about stages' meaning or where numbers come from.
"""

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from maypole.core import theme
from maypole.tour.report import words
from maypole.tour.report.model import Cell, Example, Measure, Plot, Report, Stage, Table

REPORT_BYTES = 3_000_000
PLOT_BYTES = 60_000
TEXT_SHOWN = 1_200
"""Characters of an example that stand open; the rest is folded."""
TEXT_FOLDED = (3_000, 0)
"""Characters in a fold: the first that keeps the report under its size."""
ROWS_SHOWN = 200
LOG_LINES = 20
LINE_SHOWN = 400

LOOKS = {
    "not yet": ("waiting", "not yet run"),
    "running": ("running", "running"),
    "done": ("done", "done"),
    "failed": ("failed", "failed"),
    "empty": ("done", "empty"),
    "interrupted": ("failed", "interrupted"),
    "absent": ("waiting", "not built yet"),
}


def render(report: Report) -> str:
    """The whole page. Raises ValueError for a plot above 60 kB or a report that cannot be kept under 3 MB."""
    for folded in TEXT_FOLDED:
        page = _render(report, folded)
        if len(page.encode()) < REPORT_BYTES:
            return page
    raise ValueError(f"the report has {len(page.encode()):,} bytes, at most {REPORT_BYTES:,}: give fewer plots")


def write(report: Report, path: str | Path) -> Path:
    """Render into `path`, which at any moment holds the old page or the new one, whole."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.write(render(report))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def style() -> str:
    """The page's one style sheet."""
    return theme.css_variables() + theme.svg_rules() + _resource("report.css")


def policy() -> str:
    """The page's content security policy: nothing but the style sheet with this hash, and pictures inside the page."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _render(report: Report, folded: int) -> str:
    return _template().render(
        report=report,
        policy=policy(),
        style=Markup(style()),  # ours alone, and escaping would change its hash
        folded=folded,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else words.visible(value)
        ),
    )
    environment.globals.update(
        bounds=words.bounds,
        cell=words.cell,
        dot=_dot,
        duration=words.duration,
        look=_look,
        memory=words.memory,
        number=words.number,
        numeric=_numeric,
        picture=_picture,
        sides=_sides,
        log_tail=_log_tail,
        ROWS_SHOWN=ROWS_SHOWN,
    )
    return environment.from_string(_resource("report.html.jinja"))


@cache
def _resource(name: str) -> str:
    return resources.files("maypole.tour.report").joinpath(name).read_text(encoding="utf-8")


def _look(stage: Stage) -> dict[str, str]:
    key, word = LOOKS[stage.state]
    return {"glyph": "∅" if stage.state == "empty" else theme.STATES[key].glyph, "word": word, "kind": key}


def _picture(plot: Plot, prefix: str) -> Markup:
    """The plot's SVG: made by `themable` from our own drawing, texts in it escaped by the XML writer."""
    svg = theme.themable(plot.svg, prefix)
    if len(svg.encode()) > PLOT_BYTES:
        raise ValueError(
            f"plot {plot.title!r} has {len(svg.encode()):,} bytes, at most {PLOT_BYTES:,}: draw fewer points"
        )
    return Markup(svg)


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers only, and so stand right."""
    columns: Sequence[Sequence[Cell]] = list(zip(*table.rows)) if table.rows else [() for _ in table.columns]
    return [any(c is not None for c in column) and not any(isinstance(c, str) for c in column) for column in columns]


def _dot(measure: Measure) -> dict[str, float | None]:
    """Positions in 0..200 of the change and its interval: 100 is the base, right of it better, the row's own scale."""
    sign = 1 if measure.better == "higher" else -1
    ends = [measure.interval.low, measure.interval.high] if measure.interval else []
    ends = sorted(sign * e for e in ends) if all(map(math.isfinite, ends)) else []
    reach = max(map(abs, [measure.change, *ends])) or 1.0
    low, high = (round(100 + 90 * e / reach, 1) for e in ends) if ends else (None, None)
    return {"at": round(100 + 90 * sign * measure.change / reach, 1), "low": low, "high": high}


def _sides(example: Example, folded: int) -> list[dict[str, object]]:
    """The texts of an example as runs of words, cut into what is shown, what is folded, and how much is left out."""
    limit = TEXT_SHOWN + folded
    after = words.visible(example.after)
    if example.before is None:
        texts: list[tuple[str, str, list[tuple[words.Change, str]]]] = [("", after, [("same", after[:limit])])]
    else:
        before = words.visible(example.before)
        left, right = words.word_changes(before[:limit], after[:limit])
        texts = [("before", before, left), ("after", after, right)]
    sides: list[dict[str, object]] = []
    for title, text, runs in texts:
        shown, rest = words.split_at(runs, TEXT_SHOWN)
        sides.append({"title": title, "shown": shown, "rest": rest, "left_out": max(0, len(text) - limit)})
    return sides


def _log_tail(log: Sequence[str]) -> str:
    return "\n".join(line.rstrip("\n")[:LINE_SHOWN] for line in log[-LOG_LINES:])
