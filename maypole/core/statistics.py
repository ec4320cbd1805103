"""How sure a difference is: percentile bootstrap intervals over items, and the verdict that an interval allows.

Every draw comes from `numpy.random.default_rng(seed)`, so equal input, `draws` and `seed` give equal bits, whatever the
memory bound; print the seed beside the interval. The resampling is scipy's (Efron 1979; Efron & Tibshirani 1993, ch. 13
and 16). Knows nothing about models, metrics' names or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Better = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "no clear change"]

CELLS_IN_MEMORY = 1_000_000
"""Resampled values held at once: 8 MB an array, so a million items cost no more memory than a thousand."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate `mean` and the ends of its interval, all in the unit of the values."""

    low: float
    high: float
    mean: float

    @property
    def excludes_zero(self) -> bool:
        """Zero lies strictly outside, so the sign of the estimate is clear."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(-self.high, -self.low, -self.mean)


def bootstrap(
    values: ArrayLike,
    statistic: Literal["mean", "median"] | Callable[..., NDArray[np.float64]] = "mean",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of a statistic over items.

    values: (items,), finite. statistic: a name, or a function of `(array, axis=)` as numpy's reductions are.
    One item says nothing about its spread: its interval is unbounded, never a point.
    Raises ValueError for no items, or for NaN and infinity (with the item's position).
    """
    items = _finite("values", values)
    reduce = (
        {"mean": np.mean, "median": np.median}.get(statistic, statistic) if isinstance(statistic, str) else statistic
    )
    if isinstance(reduce, str):
        raise ValueError(f"statistic {statistic!r} is neither 'mean' nor 'median' nor a function")
    return _percentile([items], reduce, draws, seed, level)


def paired_bootstrap(
    after: ArrayLike, before: ArrayLike, *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval of mean(after - before) when item i was measured both times: items are drawn, pairs kept together.

    after, before: (items,). Equal inputs give exactly [0, 0]. With three items (three seeds) the 95 % interval runs
    from the smallest difference to the largest, so it passes a bound only where every item does.
    """
    a, b = _finite("after", after), _finite("before", before)
    _same_length(after=a, before=b)
    return _percentile([a - b], np.mean, draws, seed, level)


def paired_ratio(
    after: ArrayLike,
    before: ArrayLike,
    after_weights: ArrayLike,
    before_weights: ArrayLike | None = None,
    *,
    transform: Literal["identity", "exp"] = "identity",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of f(Σafter / Σafter_weights) - f(Σbefore / Σbefore_weights) over paired items.

    For a corpus, items are documents, `after` and `before` their summed nll in nats, the weights their tokens (or
    bytes); f = exp gives the change in perplexity, identity the change in nats per token. Documents are drawn, not
    tokens, since tokens of one document are not independent. All arrays (items,), weights above 0; `before_weights`
    is `after_weights` unless another tokenizer counted.
    """
    a, b, wa = _finite("after", after), _finite("before", before), _finite("after_weights", after_weights)
    wb = wa if before_weights is None else _finite("before_weights", before_weights)
    _same_length(after=a, before=b, after_weights=wa, before_weights=wb)
    if wa.min() <= 0 or wb.min() <= 0:
        raise ValueError("every item needs a weight above 0: leave out documents without a scored token")
    f: Callable[..., NDArray[np.float64]] = np.exp if transform == "exp" else np.asarray

    def change(a: NDArray, b: NDArray, wa: NDArray, wb: NDArray, axis: int = -1) -> NDArray[np.float64]:
        return f(a.sum(axis) / wa.sum(axis)) - f(b.sum(axis) / wb.sum(axis))

    return _percentile([a, b, wa, wb], change, draws, seed, level)


def verdict(change: Interval, better: Better) -> Verdict:
    """What may be said of a change: "better" or "worse" only when its interval excludes 0."""
    if not change.excludes_zero:
        return "no clear change"
    return "better" if (change.low > 0) == (better == "higher") else "worse"


def _percentile(
    samples: Sequence[NDArray[np.float64]],
    statistic: Callable[..., NDArray[np.float64]],
    draws: int,
    seed: int,
    level: float,
) -> Interval:
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level between 0 and 1, got {draws} and {level}")
    estimate = float(statistic(*samples, axis=-1))
    n = len(samples[0])
    if n == 1:
        return Interval(-np.inf, np.inf, estimate)
    from scipy.stats import bootstrap as resample  # half a second to import, and `--help` reaches this module

    found = resample(
        samples,
        statistic,
        paired=len(samples) > 1,
        n_resamples=draws,
        batch=max(1, min(draws, CELLS_IN_MEMORY // n)),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), estimate)


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a list of at least one number, got shape {array.shape}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name} item {wrong[0]} is {array[wrong[0]]}, expected a finite number")
    return array


def _same_length(**arrays: NDArray[np.float64]) -> None:
    if len({len(a) for a in arrays.values()}) > 1:
        raise ValueError("items must be paired, got " + ", ".join(f"{len(a)} {name}" for name, a in arrays.items()))
