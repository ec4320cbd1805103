"""The pictures of a choice among documents: how surprising those of each domain are, and what share each has before
and after. Knows nothing about how it was chosen.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maypole.core import theme
from maypole.tour.report.figure import draw, label, names_within, style
from maypole.tour.report.model import Plot, Table
from maypole.tour.report.words import number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHER = "other"
ROWS_DRAWN = 16


def documents_by_surprise(
    edges: Sequence[float], domains: Mapping[str, tuple[Sequence[int], Sequence[int]]], band: tuple[float, float]
) -> Plot:
    """curate: documents (share of all) against the reference's nll in nats/token by domain, the kept `band` marked.

    edges: (bins + 1,); domains: name -> documents and kept ones (bins,) each, the largest first; beyond four the
    smaller ones are one.
    """
    shown = _merged(domains, len(theme.SERIES))
    centres = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    total = sum(int(np.sum(counts)) for counts, _ in shown.values()) or 1

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axvspan(*band, facecolor=theme.LIGHT["line"], alpha=0.6, label="kept")
        for k, (look, (name, (counts, _))) in enumerate(zip(theme.SERIES, shown.items())):
            # Each line has its markers at other places, so that none hides another.
            axes.plot(centres, np.array(counts) / total, markevery=(2 * k, 8), **style(look, label=label(name)))
        axes.set(xlabel="nll by the reference (nats/token)", ylabel="documents (share)", ylim=(0, None))
        figure.legend(loc="outside upper left", ncols=2)

    parts = [f"{percent(sum(kept) / (sum(counts) or 1))} of {name}" for name, (counts, kept) in shown.items()]
    finding = (
        f"Kept is what lies between {number(band[0], 2)} and {number(band[1], 2)} nats per token: {_listed(parts)}."
    )
    table = Table(
        columns=("domain", "from", "to", "documents", "kept"),
        rows=[
            (name, round(float(edges[i]), 3), round(float(edges[i + 1]), 3), int(n), int(k))
            for name, (counts, kept) in shown.items()
            for i, (n, k) in enumerate(zip(counts, kept))
            if n
        ],
    )
    return Plot(title="Documents by surprise", finding=finding, svg=draw(paint), table=table)


def token_share(before: Mapping[str, int], after: Mapping[str, int]) -> Plot:
    """curate: each domain's share of the tokens, of all and of what is kept (name -> tokens)."""
    totals = [sum(tokens.values()) or 1 for tokens in (before, after)]
    shares = [{name: side.get(name, 0) / total for name in before} for side, total in zip((before, after), totals)]
    drawn = list(before)[:ROWS_DRAWN]

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        rows = np.arange(len(drawn))[::-1]
        for y, name in zip(rows, drawn):
            axes.plot([s[name] for s in shares], [y, y], color=theme.LIGHT["s1"], linewidth=1.5)
        for side, look, word in zip(shares, (theme.BEFORE, theme.AFTER), ("before", "after")):
            marks = style(look, label=word) | {"linestyle": "none", "markersize": 8 if word == "before" else 6}
            axes.plot([side[name] for name in drawn], rows, **marks)
        axes.set(xlabel="tokens (share)", xlim=(-0.03, 1.03), ylim=(-0.6, len(drawn) - 0.4))
        axes.set_yticks(rows, names_within(drawn))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2)

    said = [f"{name} {percent(shares[0][name])} to {percent(shares[1][name])}" for name in drawn]
    table = Table(
        columns=("domain", "share before", "share after"),
        rows=[(name, round(shares[0][name], 4), round(shares[1][name], 4)) for name in before],
    )
    svg = draw(paint, height=80 + 34 * len(drawn))
    return Plot(title="Share of the tokens", finding=f"Of the tokens: {_listed(said)}.", svg=svg, table=table)


def _merged(
    domains: Mapping[str, tuple[Sequence[int], Sequence[int]]], limit: int
) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
    names = list(domains)
    if len(names) <= limit:
        return dict(domains)
    rest = [domains[name] for name in names[limit - 1 :]]
    sums = tuple(np.sum([one[side] for one in rest], axis=0).tolist() for side in (0, 1))
    return {**{name: domains[name] for name in names[: limit - 1]}, OTHER: (sums[0], sums[1])}


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
