"""The claim of FLAME as a picture: how precise each system is about people it knows well and half, and what it says."""

from collections.abc import Mapping
from pathlib import Path

from maypole.core import theme
from maypole.evaluate.fact_report import FactScore


def picture(found: Mapping[str, tuple[FactScore, FactScore]], folder: Path) -> None:
    """found: system -> its scores about everybody held out, and about those among them whom the base half knows."""
    import matplotlib
    from matplotlib.figure import Figure

    colour, names = theme.LIGHT, list(found)
    places = range(len(names), 0, -1)
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for part, label, look in ((0, "everybody held out", theme.AFTER), (1, "half known", theme.BEFORE)):
            shown = [100 * (found[name][part].precision or 0.0) for name in names]
            face = colour[look.color] if look.filled else "none"
            left.plot(shown, places, linestyle="none", marker=look.marker, markerfacecolor=face,
                      markeredgecolor=colour[look.color], label=label)  # fmt: skip
        for number, label, series in (("correct", "right", theme.SERIES[0]), ("errors", "wrong", theme.SERIES[1])):
            shown = [getattr(found[name][0], number) for name in names]
            right.plot(
                shown, places, linestyle="none", marker=series.marker, color=colour[series.color], label=label
            )
        left.set(xlabel="precision, %", yticks=list(places), yticklabels=names, xlim=(0, 103))
        right.set(xlabel="facts an answer, everybody held out", xlim=(-0.1, None))
        for axes in (left, right):
            axes.grid(axis="y", color=colour["line"], linewidth=1)
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / "flame.svg", metadata={"Date": None, "Creator": None})
