"""The pictures of a program of many calls: what waits for what, and what sharing saved.

Knows nothing about how it ran.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maypole.core import theme
from maypole.tour.report.figure import draw, label, style
from maypole.tour.report.model import Plot, Table
from maypole.tour.report.words import number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALLS_DRAWN = 12
"""Calls in one column; of more, those beyond are one box."""
BOX = (0.78, 0.62)
"""Width and height of a call's box, in columns and rows."""


def program_picture(graph: Mapping[str, Any]) -> Plot:
    """serve: calls as boxes, each in the column of those that can start together, with the variables between them.

    `graph`: nodes with id, function, column, tokens (prompt, reused, said), seconds; edges with name, from, to.
    """
    nodes = graph["nodes"]
    columns: dict[int, list[Mapping[str, Any]]] = {}
    for node in nodes:
        columns.setdefault(node["column"], []).append(node)
    places: dict[str, tuple[float, float]] = {}
    boxes: list[tuple[float, float, str, str]] = []
    rows = max(min(len(column), CALLS_DRAWN) for column in columns.values())
    for x, column in sorted(columns.items()):
        drawn = column if len(column) <= CALLS_DRAWN else column[: CALLS_DRAWN - 1]
        height = len(drawn) + (len(drawn) < len(column))
        for y, node in enumerate(drawn):
            places[node["id"]] = (x, y - height / 2)
            used = node["tokens"]
            boxes.append((x, y - height / 2, label(node["function"]), f"reused {used['reused']} of {used['prompt']}"))
        if len(drawn) < len(column):
            rest = column[len(drawn) :]
            places |= {node["id"]: (x, len(drawn) - height / 2) for node in rest}
            boxes.append((x, len(drawn) - height / 2, f"{len(rest)} more", ""))

    def paint(figure: "Figure") -> None:
        from matplotlib.patches import FancyBboxPatch

        axes = figure.add_subplot()
        for edge in graph["edges"]:
            for end in edge["to"] if edge["from"] else ():
                (x0, y0), (x1, y1) = places[edge["from"]], places[end]
                axes.plot([x0 + BOX[0] / 2, x1 - BOX[0] / 2], [y0, y1], color=theme.LIGHT["muted"], linewidth=1)
        for x, y, name, reused in boxes:
            corner = (x - BOX[0] / 2, y - BOX[1] / 2)
            axes.add_patch(FancyBboxPatch(corner, *BOX, boxstyle="round,pad=0,rounding_size=0.06",
                                          facecolor=theme.LIGHT["surface"], edgecolor=theme.LIGHT["s1"]))  # fmt: skip
            axes.text(x, y - (0.12 if reused else 0), name, ha="center", va="center", color=theme.LIGHT["ink"])
            axes.text(x, y + 0.17, reused, ha="center", va="center", fontsize="small", color=theme.LIGHT["muted"])
        axes.set(xlim=(min(columns) - 0.5, max(columns) + 0.5), ylim=(rows / 2 - 0.1, -rows / 2 - 0.5))
        axes.set_axis_off()

    reused, prompt = (sum(node["tokens"][name] for node in nodes) for name in ("reused", "prompt"))
    first = len(columns[min(columns)])
    finding = (
        f"{len(nodes)} calls, {first} of which start at once; of the {prompt:,} tokens of their prompts {reused:,} "
        f"({percent(reused / max(prompt, 1))}) were computed by another call already."
    )
    table = Table(
        columns=("call", "column", "prompt tokens", "reused", "said", "seconds waited", "seconds run"),
        rows=[_row(node) for node in nodes],
    )
    return Plot(title="The program", finding=finding, svg=draw(paint, height=44 * rows + 20), table=table)


def seconds_each_way(shared: Sequence[float], apart: Sequence[float]) -> Plot:
    """serve: seconds of the whole program with and without sharing, every run a point."""
    sides = {"with sharing": shared, "without": apart}

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for y, (look, values) in enumerate(zip((theme.AFTER, theme.BEFORE), sides.values())):
            axes.plot([min(values), max(values)], [-y, -y], color=theme.LIGHT[look.color], linewidth=2)
            marks: dict[str, Any] = style(look) | {"linestyle": "none"}
            axes.plot(values, [-y] * len(values), **marks)
        axes.set(xlabel="seconds", xlim=(0, 1.1 * max(map(max, sides.values()))), ylim=(-1.6, 0.6))
        axes.set_yticks([0, -1], list(sides))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    middle = {name: float(np.median(values)) for name, values in sides.items()}
    finding = (
        f"The program took {number(middle['with sharing'], 2)} s with sharing "
        f"({number(min(shared), 2)} to {number(max(shared), 2)}) and {number(middle['without'], 2)} s without "
        f"({number(min(apart), 2)} to {number(max(apart), 2)}), in {len(shared)} run{'s' * (len(shared) > 1)} each."
    )
    rows = [(i + 1, round(a, 4), round(b, 4)) for i, (a, b) in enumerate(zip(shared, apart))]
    table = Table(columns=("run", "with sharing (s)", "without (s)"), rows=rows)
    return Plot(title="Seconds with and without sharing", finding=finding, svg=draw(paint, height=130), table=table)


def _row(node: Mapping[str, Any]) -> tuple[Any, ...]:
    seconds, tokens = node["seconds"], node["tokens"]
    waited = _between(seconds["submitted"], seconds["placed"])
    return (node["function"], node["column"] + 1, tokens["prompt"], tokens["reused"], tokens["said"], waited,
            _between(seconds["placed"], seconds["ended"]))  # fmt: skip


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 4)
