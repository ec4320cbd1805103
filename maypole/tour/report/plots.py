"""The pictures of the stages, from plain numbers: each with its finding as a sentence and its numbers as a table.

Units stand on the axes. Knows nothing about artifacts, models or how the numbers were measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maypole.core import theme
from maypole.core.statistics import Better, Interval, verdict
from maypole.tour.report.figure import MARKS_AS_VECTORS, draw, label, names_within, style, thinned
from maypole.tour.report.model import Plot, Table
from maypole.tour.report.words import bounds, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_DRAWN = 24
"""Skills or measures in one picture; the table holds all."""


def held_out_loss(tokens: Sequence[float], loss: Sequence[float], base: float) -> Plot:
    """adapt: held-out loss in nats/token against training tokens seen, the base model's as a line."""
    if not len(tokens) or len(tokens) != len(loss):
        raise ValueError(f"{len(tokens)} token counts and {len(loss)} losses: expected one loss each, at least one")
    shown = thinned(len(tokens))
    x, y = [float(tokens[i]) for i in shown], [float(loss[i]) for i in shown]

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        every = max(1, len(x) // 8)
        axes.axhline(base, color=theme.LIGHT["muted"], linestyle="dashed", label="base")
        axes.plot(x, y, markevery=every, **style(theme.AFTER, label="adapted"))
        axes.set(xlabel="training tokens", ylabel="held-out loss (nats/token)")
        axes.xaxis.set_major_formatter(_short)
        axes.legend()

    way = "fell" if y[-1] < base else "rose" if y[-1] > base else "stayed"
    finding = (
        f"Held-out loss {way} from {number(base, 3)} (base) to {number(y[-1], 3)} nats per token "
        f"after {number(x[-1], 0)} training tokens."
    )
    if number(min(y), 3) != number(y[-1], 3):
        finding += f" The lowest was {number(min(y), 3)} at {number(x[y.index(min(y))], 0)} tokens."
    table = Table(columns=("training tokens", "held-out loss"), rows=[("base", base), *zip(map(round, x), y)])
    return Plot(title="Held-out loss against training tokens", finding=finding, svg=draw(paint), table=table)


def accuracy_by_skill(skills: Sequence[str], before: Sequence[float], after: Mapping[str, Sequence[float]]) -> Plot:
    """adapt: accuracy (share) per skill, before and after each adapter of `after` (name -> accuracies)."""
    for name, values in [("before", before), *after.items()]:
        if len(values) != len(skills) or not skills:
            raise ValueError(f"{len(values)} accuracies of {name} for {len(skills)} skills")
    change = np.array([list(v) for v in after.values()]) - np.array(before)  # (adapters, skills)
    order = sorted(range(len(skills)), key=lambda i: -np.abs(change[:, i]).max())
    drawn = sorted(order[:ROWS_DRAWN])
    several = len(after) > 1

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        rows = np.arange(len(drawn))[::-1]
        step = 0.5 / len(after)
        for k, (name, values) in enumerate(after.items()):
            look = theme.SERIES[k % len(theme.SERIES)]
            at = rows + (len(after) - 1) * step / 2 - k * step
            for y, i in zip(at, drawn):
                axes.plot([before[i], values[i]], [y, y], color=theme.LIGHT[look.color], linewidth=1.5)
            # A larger ring beneath the dot: both are seen where nothing changed.
            ring: dict[str, Any] = _marks(theme.BEFORE, "before" if not k else None) | {"markersize": 8}
            axes.plot([before[i] for i in drawn], at, **ring)
            axes.plot([values[i] for i in drawn], at, **_marks(look, label(name) if several else "after"))
        axes.set(xlabel="accuracy (share)", xlim=(-0.03, 1.03), ylim=(-0.6, len(drawn) - 0.4))
        axes.set_yticks(rows, names_within([skills[i] for i in drawn]))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right", ncols=3)

    table = Table(
        columns=("skill", "before", *after),
        rows=[(s, float(b), *(float(v[i]) for v in after.values())) for i, (s, b) in enumerate(zip(skills, before))],
    )
    said = [_skills_sentence(name if several else "", skills, change[k]) for k, name in enumerate(after)]
    svg = draw(paint, height=70 + len(drawn) * (26 if not several else 14 + 12 * len(after)))
    return Plot(title="Accuracy per skill", finding=" ".join(said), svg=svg, table=table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """evaluate: one measure's change against the base for each model, with intervals, in the measure's unit."""

    measure: str
    better: Better
    changes: Mapping[str, Interval]
    unit: str = ""
    digits: int = 2


def change_per_measure(measures: Sequence[Changes]) -> Plot:
    """evaluate: change per measure and model with bars, each measure on its own axis in its own unit."""
    if not measures or not all(m.changes for m in measures):
        raise ValueError("expected at least one measure with at least one model")
    models = list(dict.fromkeys(model for m in measures for model in m.changes))
    drawn = measures[: ROWS_DRAWN // 2]
    row = 44 + 12 * len(models)

    def paint(figure: "Figure") -> None:
        rows = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
        for axes, m in zip(rows, drawn):
            axes.axvline(0, color=theme.LIGHT["muted"], linestyle="dashed", linewidth=1.5)
            for k, model in enumerate(models):
                if model in m.changes:
                    _bar(axes, m.changes[model], -k, theme.SERIES[k % len(theme.SERIES)], model)
            arrow = "better →" if m.better == "higher" else "← better"
            unit = f" ({label(m.unit, 16)})" if m.unit else ""
            axes.set_title(f"{label(m.measure, 28)}{unit}", loc="left")
            axes.set_title(arrow, loc="right", color=theme.LIGHT["muted"])
            axes.set(yticks=[], ylim=(-len(models) + 0.4, 0.6))
            axes.margins(x=0.12)
            axes.locator_params(axis="x", nbins=5)
            axes.spines["left"].set_visible(False)
        if len(models) > 1:
            handles, texts = rows[0].get_legend_handles_labels()
            figure.legend(handles, map(label, texts), loc="outside upper left", ncols=2)

    said = []
    for model in models:
        words = [verdict(m.changes[model], m.better) for m in measures if model in m.changes]
        counts = ", ".join(f"{words.count(w)} {w}" for w in ("better", "no clear change", "worse"))
        said.append(f"{model}: of {len(words)} measures {counts}.")
    table = Table(
        columns=("measure", "unit", "model", "change", "95 % CI", "verdict"),
        rows=[
            (m.measure, m.unit, model, number(c.mean, m.digits, signed=True), bounds(c, m.digits), verdict(c, m.better))
            for m in measures
            for model, c in m.changes.items()
        ],
    )
    svg = draw(paint, height=row * len(drawn) + (30 if len(models) > 1 else 0))
    return Plot(title="Change against the base", finding=" ".join(said), svg=svg, table=table)


def scatter(
    title: str, finding: str, groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str
) -> Plot:
    """Points of up to four groups (name -> xs, ys); above 600 marks in all they become one PNG layer."""
    if not groups or len(groups) > len(theme.SERIES):
        raise ValueError(f"{len(groups)} groups of points: 1 to {len(theme.SERIES)} can be told apart")
    count = sum(len(xs) for xs, _ in groups.values())

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for look, (name, (xs, ys)) in zip(theme.SERIES, groups.items()):
            settings: dict[str, Any] = _marks(look, label(name)) | {
                "markersize": 5 if count <= 200 else 3,
                "markeredgewidth": 0,
            }
            settings["rasterized"] = count > MARKS_AS_VECTORS
            axes.plot(xs, ys, **settings)
        axes.set(xlabel=x, ylabel=y)
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    rows = [(name, float(a), float(b)) for name, (xs, ys) in groups.items() for a, b in zip(xs, ys)]
    table = Table(columns=("group", x, y), rows=[rows[i] for i in thinned(len(rows), 200)])
    return Plot(title=title, finding=finding, svg=draw(paint, height=300), table=table)


def _marks(look: theme.Series, name: str | None) -> dict[str, Any]:
    return style(look, label=name) | {"linestyle": "none"}


def _bar(axes: Any, change: Interval, y: float, look: theme.Series, name: str) -> None:
    colour = theme.LIGHT[look.color]
    if np.isfinite(change.low) and np.isfinite(change.high):
        axes.plot([change.low, change.high], [y, y], color=colour, linewidth=2)
    axes.plot([change.mean], [y], **_marks(look, name))


def _skills_sentence(adapter: str, skills: Sequence[str], change: np.ndarray) -> str:
    up, down = int((change > 0).sum()), int((change < 0).sum())
    parts = [f"Accuracy rose in {up} of {len(skills)} skills and fell in {down}"]
    if up:
        parts.append(f"most gained in {skills[int(change.argmax())]} ({number(float(change.max()), 2, signed=True)})")
    if down:
        parts.append(f"most lost in {skills[int(change.argmin())]} ({number(float(change.min()), 2, signed=True)})")
    return (f"{adapter}: " if adapter else "") + ", ".join(parts) + "."


def _short(value: float, position: float = 0) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
