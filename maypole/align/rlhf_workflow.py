"""Iterative DPO, the online half of RLHF Workflow (arXiv 2405.07863): of n sampled answers the best against the worst.

Knows nothing about how answers are drawn or judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from maypole.align.method import JudgeKind, pair_of, rows_from
from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.engine.request import Sampling
from maypole.train.objective import Objective


@dataclass(frozen=True, slots=True)
class IterativeDPO:
    """Pairs of the candidate with the highest score and the one with the lowest, for any loss on pairs.

    Scores are a reward's, or mean win rates among the candidates by a preference. A prompt whose candidates all have
    one score, or whose best and worst are the same tokens, makes no pair.
    """

    preference: PreferenceOptions = PreferenceOptions()
    sampling: Sampling = Sampling(n=8)

    @property
    def objective(self) -> Objective:
        return objective_of(self.preference)

    @property
    def draws(self) -> tuple[Sampling, ...]:
        return (self.sampling,)

    @property
    def answers(self) -> tuple[str, ...]:
        return ()

    @property
    def judge(self) -> JudgeKind:
        return "reward"

    def rows(self, samples: Dataset) -> Dataset:
        return rows_from(samples, best_and_worst)


def best_and_worst(sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """A PAIR row of a prompt's best and worst candidate, the first of equals; None where nothing tells them apart."""
    scores = np.array(sample["scores"])
    best, worst = int(scores.argmax()), int(scores.argmin())
    ids = sample["completion_ids"]
    if scores[best] == scores[worst] or ids[best] == ids[worst] or not ids[best] or not ids[worst]:
        return None
    told = {"chosen_score": float(scores[best]), "rejected_score": float(scores[worst])}
    return pair_of(sample, best, worst) | told
