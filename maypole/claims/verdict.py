"""Whether measured effects support a claim. Knows nothing about how they were measured.

With three seeds or more the unfavourable end of the 95 % interval has to pass (paired bootstrap by seed: at three,
every seed passes); with fewer there is no interval and the point estimate decides, as it does where a rule says so.
"""

from collections.abc import Sequence
from typing import Any

from maypole.claims.effects import Effect
from maypole.core.statistics import paired_bootstrap

INTERVAL_FROM = 3
"""Seeds from which an interval says something."""

ROUNDING = 1e-9
"""0.6 - 0.5 is 0.09999999999999998: a number exactly at its threshold passes."""


def judge(seeds: Sequence[Effect]) -> dict[str, Any]:
    """One effect over all its seeds, as the result file holds it."""
    first = seeds[0]
    values, against = [_value(e) for e in seeds], [_base(e) for e in seeds]
    estimate = sum(v - a for v, a in zip(values, against)) / len(seeds)
    interval = paired_bootstrap(values, against, seed=0) if len(seeds) >= INTERVAL_FROM else None
    low = high = estimate
    if interval is not None and not first.rule.startswith("mean"):
        low, high = interval.low, interval.high
    if first.rule.endswith(">="):
        holds = low >= first.threshold - ROUNDING
    else:
        holds = high <= first.threshold + ROUNDING
    return {
        "name": first.name,
        "metric": first.metric,
        "ours": [e.ours for e in seeds],
        "baseline": None if first.baseline is None else [e.baseline for e in seeds],
        "difference": estimate,
        "ci95": [interval.low, interval.high] if interval else None,
        "threshold": first.threshold,
        "rule": first.rule,
        "control": first.control,
        "holds": bool(holds),
    }


def combine(by_seed: Sequence[Sequence[Effect]], prefix: str = "") -> list[dict[str, Any]]:
    """Every effect over all seeds; ValueError where seeds measured different things."""
    shapes = [[(e.name, e.metric, e.threshold, e.rule, e.control) for e in effects] for effects in by_seed]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the seeds of a claim measured different effects; names, thresholds and rules must agree")
    judged = [judge(effects) for effects in zip(*by_seed)]
    return [{**effect, "name": prefix + effect["name"]} for effect in judged]


def _value(effect: Effect) -> float:
    return effect.ours / (effect.baseline or 1.0) if effect.rule.startswith("ratio") else effect.ours


def _base(effect: Effect) -> float:
    return effect.baseline or 0.0 if "difference" in effect.rule else 0.0
