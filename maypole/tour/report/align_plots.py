"""The pictures of online rounds: how often the model beats itself as it was, by round and by how far it has moved.

Knows nothing about judges or models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maypole.core import theme
from maypole.core.statistics import Interval
from maypole.tour.report.figure import draw, style
from maypole.tour.report.model import Plot, Table
from maypole.tour.report.words import bounds, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVEN = 0.5


def won_by_round(won: Sequence[Interval]) -> Plot:
    """align: win rate against the model before the first round, after each number of rounds from 0 on."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axhline(EVEN, **_even())
        rounds = range(len(won))
        _bars(axes, [float(i) for i in rounds], won)
        axes.plot(rounds, [w.mean for w in won], **style(theme.AFTER, label="after the rounds"))
        axes.set(xlabel="rounds", ylabel="win rate (share)", ylim=(-0.03, 1.03))
        axes.set_xticks(list(rounds))
        axes.legend(loc="lower right")

    last = won[-1]
    finding = (
        f"After {_rounds(len(won) - 1)} the model wins {number(last.mean, 2)} {_within(last)} of the comparisons with "
        "itself before the first."
    )
    rows = [(i, round(w.mean, 3), round(w.low, 3), round(w.high, 3)) for i, w in enumerate(won)]
    table = Table(columns=("rounds", "win rate", "from", "to"), rows=rows)
    return Plot(title="Win rate by round", finding=finding, svg=draw(paint), table=table)


def won_for_distance(won: Sequence[Interval], moved: Sequence[Interval]) -> Plot:
    """align: the same against KL from the model before, in nats per answer: what was gained for how much change."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axhline(EVEN, **_even())
        _bars(axes, [m.mean for m in moved], won)
        for w, m in zip(won, moved):
            axes.plot([m.low, m.high], [w.mean, w.mean], color=theme.LIGHT["s1"], linewidth=1.5)
        axes.plot([m.mean for m in moved], [w.mean for w in won], **style(theme.AFTER, label="after 0, 1, 2 … rounds"))
        axes.set(xlabel="KL from before (nats/answer)", ylabel="win rate (share)", ylim=(-0.03, 1.03))
        axes.legend(loc="lower right")

    finding = (
        f"For that it moved {number(moved[-1].mean, 2)} {_within(moved[-1])} nats an answer away from itself as it was."
    )
    rows = [(i, round(m.mean, 3), round(m.low, 3), round(m.high, 3), round(w.mean, 3))
            for i, (w, m) in enumerate(zip(won, moved))]  # fmt: skip
    table = Table(columns=("rounds", "KL (nats/answer)", "from", "to", "win rate"), rows=rows)
    return Plot(title="Win rate against distance", finding=finding, svg=draw(paint), table=table)


def _even() -> dict[str, Any]:
    return {"color": theme.LIGHT["muted"], "linestyle": "dashed", "label": "before"}


def _bars(axes: Any, at: Sequence[float], won: Sequence[Interval]) -> None:
    for x, w in zip(at, won):
        axes.plot([x, x], [w.low, w.high], color=theme.LIGHT["s1"], linewidth=2)


def _within(interval: Interval) -> str:
    return bounds(interval, 2).replace("+", "")


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count != 1 else ''}"
