"""A report as a picture: how surprising the documents are and which of them are kept, of all and by domain.

Knows nothing about how they were chosen.
"""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from maypole.core import theme

FILE = "nll.svg"
WIDTH, HEIGHT = 720, 400
"""Pixels."""
LONGEST_NAME = 30


def picture(document: Mapping[str, Any]) -> str:
    """The histogram of report.json as an SVG on a light ground. With many domains the smaller ones share a line."""
    import matplotlib
    from matplotlib.figure import Figure

    edges = np.array(document["histogram"]["edges"])
    domains = {n: (np.array(d["documents"]), np.array(d["kept"])) for n, d in document["histogram"]["domains"].items()}
    every, kept = (sum(side) for side in zip(*domains.values()))
    lines = _lines({name: counts for name, (counts, _) in domains.items()})
    colour = theme.LIGHT
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        rows = figure.subplots(1 + (len(lines) > 1), sharex=True, squeeze=False)[:, 0]
        rows[0].stairs(kept, edges, fill=True, color=colour[theme.AFTER.color], label="kept")
        rows[0].stairs(every, edges, color=colour[theme.BEFORE.color], linestyle=theme.BEFORE.dash, linewidth=1.5,
                       label="all")  # fmt: skip
        rows[0].set(ylabel="documents", xlim=(edges[0], edges[-1]))
        if len(lines) > 1:
            centres = (edges[1:] + edges[:-1]) / 2
            for k, (look, (name, counts)) in enumerate(zip(theme.SERIES, lines.items())):
                rows[1].plot(
                    centres, counts / max(counts.sum(), 1), color=colour[look.color], linestyle=look.dash,
                    marker=look.marker, markevery=(3 * k, 12), label=_label(name),
                )  # fmt: skip
            rows[1].set(ylabel="share of the domain", ylim=(0, None))
        rows[-1].set_xlabel("nats per token by the reference")
        for axes in rows:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        written = io.StringIO()
        with warnings.catch_warnings():  # text stays text: the reader's fonts draw it, not matplotlib's
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _lines(domains: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name -> counts (bins,) of the largest domains, as many as can be told apart."""
    most = len(theme.SERIES)
    order = sorted(domains, key=lambda name: -int(domains[name].sum()))
    if len(order) <= most:
        return {name: domains[name] for name in order}
    rest = np.sum([domains[name] for name in order[most - 1 :]], axis=0)
    return {**{name: domains[name] for name in order[: most - 1]}, f"{len(order) - most + 1} others": rest}


def _label(name: str) -> str:
    """A domain's name for the legend: short, without what XML cannot hold, and visible."""
    plain = "".join(c if c.isprintable() else "\ufffd" for c in name).lstrip("_")  # with _ matplotlib leaves it out
    return (plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 1] + "…") or "(none)"
