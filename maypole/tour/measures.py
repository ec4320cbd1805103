"""What a tour's items add up to: each measure before and after, with its interval over items. Knows no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maypole.core.statistics import paired_bootstrap, paired_ratio
from maypole.tour.report import Measure

MEANINGS = {
    "corpus perplexity": "surprise at held-out documents; lower is better",
    "general perplexity": "surprise at other text: what may be forgotten",
    "new tasks": "share right: tasks that the base never saw",
    "old tasks": "share right: tasks of the base, which may be forgotten",
    "facts recalled": "share right: facts of the base, which may be forgotten",
    "task accuracy": "share right: small tasks with words and lists",
}
PERPLEXITIES = {"corpus": "corpus perplexity", "general": "general perplexity"}


def measures(items: Mapping[str, Any]) -> list[Measure]:
    """Perplexities over texts, then accuracies over questions, in the order in which they were asked."""
    before, after = items["before"], items["after"]
    made = [_perplexity(name, before[part], after[part]) for part, name in PERPLEXITIES.items() if part in before]
    for name in dict.fromkeys(question["measure"] for question in items["questions"]):
        which = [i for i, question in enumerate(items["questions"]) if question["measure"] == name]
        made.append(_accuracy(name, [before["right"][i] for i in which], [after["right"][i] for i in which]))
    return made


def summary(found: Sequence[Measure]) -> dict[str, Any]:
    """Measures as plain numbers, for the manifest and for ``--json``."""
    return {
        m.name: {
            "before": m.before, "after": m.after, "change": m.change,
            "ci95": [m.interval.low, m.interval.high] if m.interval else None, "n": m.n, "verdict": m.verdict,
        }
        for m in found
    }  # fmt: skip


def skills(items: Mapping[str, Any]) -> dict[str, tuple[float, float, int]]:
    """Accuracy before and after and the number of questions, by task or kind of fact."""
    groups: dict[str, list[int]] = {}
    for i, question in enumerate(items["questions"]):
        groups.setdefault(_skill(question["group"]), []).append(i)
    sides = [np.array(items[side]["right"]) for side in ("before", "after")]
    return {name: (float(sides[0][i].mean()), float(sides[1][i].mean()), len(i)) for name, i in groups.items()}


def _skill(group: str) -> str:
    kind, _, name = group.partition("/")
    if kind == "task":
        return name
    return {"H1": "facts, reworded"}.get(name, "facts" if kind == "attribute" else "relations")


def _perplexity(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Measure:
    tokens = np.array(before["tokens"])
    nll = [np.array(side["nll"]) for side in (before, after)]
    values = [float(np.exp(n.sum() / tokens.sum())) for n in nll]
    interval = paired_ratio(nll[1], nll[0], tokens, transform="exp")
    return Measure(
        name=name, before=values[0], after=values[1], interval=interval, n=len(tokens), better="lower",
        meaning=MEANINGS[name],
    )  # fmt: skip


def _accuracy(name: str, before: Sequence[float], after: Sequence[float]) -> Measure:
    return Measure(
        name=name, before=float(np.mean(before)), after=float(np.mean(after)),
        interval=paired_bootstrap(after, before), n=len(before), better="higher",
        meaning=MEANINGS[name],
    )  # fmt: skip
