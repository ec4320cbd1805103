"""Measurements of many runs, put beside each other at equal distance from where they began.

A point is one measurement of one run: a mapping with at least cell, arm, step, kl and win_rate. Distances are told
apart in bins whose edges are powers of √2 nats, so that those of different experiments are the same. Pure arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Point = Mapping[str, Any]
NEAREST = 2.0**-10
"""Nats below which distances are not told apart."""


def bin_of(kl: float) -> int:
    """The bin k of a distance: 2^(k/2) up to 2^((k+1)/2) nats."""
    return math.floor(2 * math.log2(max(kl, NEAREST)))


def edges(number: int) -> tuple[float, float]:
    return 2 ** (number / 2), 2 ** ((number + 1) / 2)


def envelope(points: Sequence[Point]) -> dict[int, Point]:
    """In every bin that was reached the point that wins most, nearest bins first."""
    best: dict[int, Point] = {}
    for point in points:
        number = bin_of(point["kl"])
        if number not in best or point["win_rate"] > best[number]["win_rate"]:
            best[number] = point
    return dict(sorted(best.items()))


def peak(points: Sequence[Point]) -> Point:
    """The point of a run, or of several, that wins most; the first of equals."""
    return max(points, key=lambda point: point["win_rate"])


def runs(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A line for each run: where it wins most, and what of that is lost until its end."""
    lines: list[dict[str, Any]] = []
    for name in dict.fromkeys(point["cell"] for point in points):
        mine = [point for point in points if point["cell"] == name]
        top, last = peak(mine), mine[-1]
        told = {name: last.get(name) for name in ("cell", "arm", "size", "beta", "rate")}
        told |= {"peak_win_rate": top["win_rate"], "peak_kl": top["kl"], "peak_step": top["step"]}
        told |= {"win_rate": last["win_rate"], "kl": last["kl"], "fall": top["win_rate"] - last["win_rate"]}
        rest = ("proxy_win_rate", "pair_accuracy", "pair_ties", "length", "finished", "alike")
        lines.append(told | {name: last.get(name) for name in rest})
    return lines


def compared(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, Any]:
    """Two arms beside each other: the envelopes in the bins that both reached, the best of each anywhere, and how well
    they tell pairs apart in the mean over their runs' last steps.

    mean_difference and above (the number of bins in which ours wins more) are None and 0 where no bin is common.
    """
    mine, other = envelope(ours), envelope(theirs)
    common = [
        {"kl_from": edges(k)[0], "kl_to": edges(k)[1], "ours": mine[k]["win_rate"], "theirs": other[k]["win_rate"],
         "difference": mine[k]["win_rate"] - other[k]["win_rate"]}
        for k in mine if k in other
    ]  # fmt: skip
    differences = [one["difference"] for one in common]
    told = [[line["pair_accuracy"] for line in runs(points)] for points in (ours, theirs)]
    return {
        "best": peak(ours)["win_rate"],
        "best_against": peak(theirs)["win_rate"],
        "best_difference": peak(ours)["win_rate"] - peak(theirs)["win_rate"],
        "pair_accuracy": sum(told[0]) / len(told[0]),
        "pair_accuracy_against": sum(told[1]) / len(told[1]),
        "bins": common,
        "mean_difference": sum(differences) / len(differences) if differences else None,
        "above": sum(difference > 0 for difference in differences),
    }
