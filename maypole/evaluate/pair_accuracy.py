"""How often a judge prefers the chosen answer of a pair to the rejected one. Knows nothing about training judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import JudgeError
from maypole.core.judge import OnJudgeError, Preference, Reward
from maypole.core.statistics import Interval, bootstrap
from maypole.evaluate.win_rate import outcomes


@dataclass(frozen=True)
class Accuracy:
    """`items` (pairs,): 1 right, 0 wrong, ½ undecided; `interval` is that of their mean."""

    items: NDArray[np.float64]
    interval: Interval
    left_out: int = 0

    @property
    def accuracy(self) -> float:
        return self.interval.mean


def pair_accuracy(
    rows: Sequence[Mapping[str, Any]],
    judge: Reward | Preference,
    *,
    on_judge_error: OnJudgeError = "stop",
    seed: int = 0,
) -> Accuracy:
    """The judge's accuracy on rows with `prompt`, `chosen` and `rejected`; a preference counts by its side of ½."""
    prompts, chosen, rejected = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
    found = outcomes(chosen, rejected, judge, prompts, on_judge_error=on_judge_error)
    kept = found[~np.isnan(found)]
    if not len(kept):
        raise JudgeError(f"the judge had no opinion on any of {len(rows)} pairs")
    items = (np.sign(kept - 0.5) + 1) / 2
    return Accuracy(items, bootstrap(items, seed=seed), len(rows) - len(kept))
