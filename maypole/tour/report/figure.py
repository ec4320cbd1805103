"""A picture from a paint function: matplotlib without global state, the same bytes every time.

Drawn at the size of a phone's column, where a point is a pixel; knows nothing about what is painted.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maypole.core import theme
from maypole.tour.report.words import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 420
POINTS_A_SERIES = 120
MARKS_AS_VECTORS = 600
"""More marks than this become one PNG layer: a mark costs 75 bytes, and a plot has 60 kB."""


def draw(paint: Callable[["Figure"], None], *, height: int = 250, width: int = WIDTH) -> str:
    """The SVG of a figure of `width` by `height` pixels that `paint` fills."""
    import matplotlib
    from matplotlib.figure import Figure

    # The reader's browser has other fonts than the machine that measures the labels: glyphs missing here do not matter.
    with matplotlib.rc_context(theme.rc_params()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / 72, height / 72), dpi=96)
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def style(series: theme.Series, *, label: str | None = None) -> dict[str, Any]:
    """matplotlib's line settings for a series of the theme."""
    colour = theme.LIGHT[series.color]
    return {
        "color": colour,
        "linestyle": series.dash,
        "marker": series.marker,
        "markerfacecolor": colour if series.filled else theme.LIGHT["page"],
        "markeredgecolor": colour,
        "label": label,
    }


def thinned(count: int, limit: int = POINTS_A_SERIES) -> list[int]:
    """At most `limit` positions out of `count`, evenly spaced, first and last among them."""
    if count <= limit:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()


def label(text: str, size: int = 24) -> str:
    """A name that fits beside an axis: one line, codes for what can't be seen, cut with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= size else line[: size - 1] + "…"


def names_within(names: Sequence[str], size: int = 24) -> list[str]:
    """Labels of several names, numbered where cutting made two the same."""
    cut = [label(name, size) for name in names]
    return [f"{text} ({i})" if cut.count(text) > 1 else text for i, text in enumerate(cut, 1)]
