"""The comparisons as a picture: for each, every measurement by distance and rate of winning, and the envelope of each
arm. Knows nothing about pages or files.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from maypole.align.online_offline_gap.curves import Point, envelope
from maypole.core import theme

WIDTH, HEIGHT, COLUMNS = 440, 290, 2
"""Pixels of a panel; how many stand side by side."""


def picture(comparisons: Sequence[Mapping[str, Any]], points: Sequence[Point]) -> str:
    """An SVG on a light ground, a panel for each experiment and size with all arms that it compares."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels(comparisons)
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": theme.LIGHT["page"]}):
        figure = Figure(figsize=(columns * WIDTH / 72, lines * HEIGHT / 72), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axis, (title, (size, arms)) in zip(axes, panels.items()):
            _panel(axis, title, {arm: [p for p in points if p["arm"] == arm and p["size"] == size] for arm in arms})
        for empty in axes[len(panels) :]:
            empty.set_axis_off()
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _panels(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    """Title -> size and arms; classification shows the arms of gap, of which it asks something else."""
    found: dict[str, tuple[str, list[str]]] = {}
    for one in comparisons:
        title = " ".join(filter(None, (one["experiment"], one["size"])))
        arms = found.setdefault(title, (one["size"], []))[1]
        arms += [arm for arm in (one["arm"], one["against"]) if arm not in arms]
    return found


def _panel(axis: Any, title: str, arms: Mapping[str, Sequence[Point]]) -> None:
    classifies = title.startswith("classification")
    across = "pair_accuracy" if classifies else "kl"
    for look, (arm, points) in zip(theme.SERIES, arms.items()):
        colour = theme.LIGHT[look.color]
        face = colour if look.filled else theme.LIGHT["page"]
        axis.plot(
            [p[across] for p in points], [p["win_rate"] for p in points], linestyle="none", marker=look.marker,
            markersize=4, color=colour, markerfacecolor=face, label=arm if classifies else None,
        )  # fmt: skip
        if not classifies:
            best = list(envelope(points).values())
            axis.plot(
                [p["kl"] for p in best], [p["win_rate"] for p in best], color=colour, linestyle=look.dash,
                marker=look.marker, markerfacecolor=face, label=arm,
            )  # fmt: skip
    axis.axhline(0.5, color=theme.LIGHT["line"], linewidth=1)
    axis.set(title=title, ylabel="wins against the first policy")
    axis.set_xlabel("pairs told apart" if classifies else "KL to the first policy, nats an answer")
    if not classifies:
        axis.set_xlim(0, None)
    axis.legend(loc="best")
