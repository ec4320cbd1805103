"""The claim of RLHF Workflow as a picture: what the steps bought by the truth, and how long answers became."""

from collections.abc import Mapping
from pathlib import Path

from maypole.core import theme


def picture(points: Mapping[str, Mapping[int, Mapping[str, float]]], folder: Path) -> None:
    """points: arm -> step -> what was measured."""
    import matplotlib
    from matplotlib.figure import Figure

    colour = theme.LIGHT
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for look, (name, some) in zip((theme.BEFORE, *theme.SERIES), points.items(), strict=True):
            line = {"color": colour[look.color], "linestyle": look.dash, "marker": look.marker, "label": name}
            left.plot(list(some), [point["wins"] for point in some.values()], **line)
            right.plot(list(some), [point["tokens"] for point in some.values()], **line)
        left.axhline(0.5, color=colour["line"], linewidth=1)
        left.set(xlabel="step", ylabel="gold wins against the first policy")
        right.set(xlabel="step", ylabel="tokens of an answer", ylim=(0, None))
        right.legend(loc="upper left", bbox_to_anchor=(1, 1))
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / "rlhf-workflow.svg", metadata={"Date": None, "Creator": None})
