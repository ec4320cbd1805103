"""The claim of SPPO as a picture: what became of the chosen answers, and what a distance from the start bought."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from maypole.core import theme


def picture(
    rises: Mapping[str, Sequence[float]], ends: Mapping[str, Sequence[Sequence[float]]], folder: Path
) -> None:
    """rises: method -> Δ log π of the chosen by round; ends: method -> (wins, worst, distance) by round."""
    import matplotlib
    from matplotlib.figure import Figure

    colour = theme.LIGHT
    shown = [name for name in rises if "hard" not in name]  # as many as can be told apart
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for look, name in zip(theme.SERIES, shown, strict=True):
            line = {"color": colour[look.color], "linestyle": look.dash, "marker": look.marker, "label": name}
            left.plot(range(1, 1 + len(rises[name])), rises[name], **line)
            right.plot([end[2] for end in ends[name]], [end[0] for end in ends[name]], **line)
        left.axhline(0, color=colour["line"], linewidth=1)
        left.set(xlabel="round", ylabel="Δ log π of the chosen, nats", xticks=range(1, 1 + len(rises[shown[0]])))
        right.set(xlabel="KL to the first policy, nats", ylabel="wins against it", xlim=(0, None))
        right.legend(loc="upper left", bbox_to_anchor=(1, 1))
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / "sppo.svg", metadata={"Date": None, "Creator": None})
