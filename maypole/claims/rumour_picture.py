"""How the arms of a rumour experiment went, round by round, as a picture. Knows nothing about what they are."""

import io
import warnings
from collections.abc import Mapping

from maypole.core import theme

PANELS = {
    "true": "P(true value)",
    "discovered": "people whose\ntrue value was tried",
    "distinct": "distinct candidates",
    "entropy": "entropy, nats",
}
WIDTH, HEIGHT = 720, 480
"""Pixels."""


def picture(arms: Mapping[str, Mapping[int, Mapping[str, float]]], steps: int) -> str:
    """A panel for each measure, a line for each arm, as an SVG on a light ground; `steps` are a round's."""
    import matplotlib
    from matplotlib.figure import Figure

    colour = theme.LIGHT
    looks = [theme.BEFORE, *theme.SERIES]
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        for axes, (measure, label) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items()):
            for look, (name, points) in zip(looks, arms.items()):
                axes.plot(
                    [step / steps for step in points], [point[measure] for point in points.values()],
                    color=colour[look.color], linestyle=look.dash, marker=look.marker, label=name,
                )  # fmt: skip
            axes.set(ylabel=label, ylim=(0, None))
        for axes in figure.axes[-2:]:
            axes.set_xlabel("round")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        written = io.StringIO()
        with warnings.catch_warnings():  # text stays text: the reader's fonts draw it, not matplotlib's
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
