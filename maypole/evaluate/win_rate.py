"""How often one set of answers beats another by a judge, ties counting half. Knows nothing about where answers or
judges come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import JudgeError
from maypole.core.judge import OnJudgeError, Preference, Reward, call_preference, reward_both, symmetric
from maypole.core.statistics import Interval, bootstrap
from maypole.evaluate.judges import is_preference


@dataclass(frozen=True)
class WinRate:
    """`items` (pairs,) are 1 for a win of `a`, 0 for a loss, ½ for a tie, or a preference's P(a beats b).

    `interval` is that of their mean; `left_out` pairs had no opinion or a failing judge.
    """

    items: NDArray[np.float64]
    interval: Interval
    left_out: int = 0

    @property
    def rate(self) -> float:
        return self.interval.mean

    @property
    def wins(self) -> int:
        return int((self.items > 0.5).sum())

    @property
    def ties(self) -> int:
        return int((self.items == 0.5).sum())

    @property
    def losses(self) -> int:
        return int((self.items < 0.5).sum())


def win_rate(
    a: Sequence[Any],
    b: Sequence[Any],
    judge: Reward | Preference,
    prompts: Sequence[Any],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    both_orders: bool = True,
    on_judge_error: OnJudgeError = "stop",
    seed: int = 0,
) -> WinRate:
    """How often completions `a` beat completions `b` of the same prompts.

    A Reward compares its two scores, equal ones being a tie. A Preference is asked in both orders unless told not to,
    since judges like first places. Pairs are drawn for the interval. Raises JudgeError if no pair was judged.
    """
    items = outcomes(a, b, judge, prompts, columns, both_orders=both_orders, on_judge_error=on_judge_error)
    return summary(items, seed=seed)


def summary(items: NDArray[np.float64], *, seed: int = 0) -> WinRate:
    """The win rate of `outcomes`, NaN being left out."""
    kept = items[~np.isnan(items)]
    if not len(kept):
        raise JudgeError(f"the judge had no opinion on any of {len(items)} pairs")
    return WinRate(kept, bootstrap(kept, seed=seed), len(items) - len(kept))


def outcomes(
    a: Sequence[Any],
    b: Sequence[Any],
    judge: Reward | Preference,
    prompts: Sequence[Any],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    both_orders: bool = True,
    on_judge_error: OnJudgeError = "stop",
) -> NDArray[np.float64]:
    """(pairs,): 1, ½ or 0 as `a` wins, ties or loses, or P(a beats b); NaN where the judge says nothing."""
    asked: Any = judge
    if is_preference(judge):
        preference = symmetric(asked) if both_orders else asked
        return call_preference(preference, prompts, a, b, columns, on_judge_error=on_judge_error).array
    return compared(*reward_both(asked, prompts, a, b, columns, on_judge_error=on_judge_error))


def compared(of_a: NDArray[np.float64], of_b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(pairs,): 1, ½ or 0 as the score in `of_a` is above, equal to or below the one in `of_b`; NaN where one is."""
    return np.where(np.isnan(of_a) | np.isnan(of_b), np.nan, (np.sign(of_a - of_b) + 1) / 2)
