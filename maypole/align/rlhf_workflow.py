"""Iterative DPO, the online half of RLHF Workflow (arXiv 2405.07863): of n sampled answers two become a pair, the best
and the worst unless told otherwise, and a score may be charged for the length of its answer.

Knows nothing about how answers are drawn or judged, or what earlier rounds have left.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from maypole.align.method import JudgeKind, pair_of, rows_from
from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.align.rlhf_workflow_options import WorkflowOptions
from maypole.core.errors import ConfigError
from maypole.core.seeds import derive
from maypole.engine.request import Sampling
from maypole.train.objective import Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IterativeDPO:
    """Pairs of two candidates, ordered by score, for any loss on pairs.

    Scores are a reward's, or mean win rates among the candidates by a preference. A prompt whose candidates all have
    one score, or whose two are the same tokens, makes no pair.

    Parameters
    ----------
    sampling
        ``n`` is for each prompt. With several `options.temperatures` each draws its share of them.
    options
        The rule by which two are taken, and what length costs.
    """

    preference: PreferenceOptions = PreferenceOptions()
    sampling: Sampling = Sampling(n=8)
    options: WorkflowOptions = WorkflowOptions()

    def __post_init__(self) -> None:
        shares, n = self.options.temperatures, self.sampling.n
        if len(shares) > n:
            raise ConfigError("temperature", shares, f"at most as many as answers to a prompt, here {n}")
        if any(draw.temperature != 1 or draw.top_p != 1 for draw in self.draws):
            log.info("answers are not drawn from the policy itself, which a bound on its distance takes for granted")

    @property
    def objective(self) -> Objective:
        return objective_of(self.preference)

    @property
    def draws(self) -> tuple[Sampling, ...]:
        heats = self.options.temperatures or (self.sampling.temperature,)
        each, more = divmod(self.sampling.n, len(heats))
        return tuple(replace(self.sampling, n=each + (i < more), temperature=heat) for i, heat in enumerate(heats))

    @property
    def answers(self) -> tuple[str, ...]:
        return ()

    @property
    def judge(self) -> JudgeKind:
        return "reward"

    def rows(self, samples: Dataset) -> Dataset:
        return rows_from(samples, lambda sample: pair_by(self.options, sample))


def pair_by(options: WorkflowOptions, sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """A PAIR row of two of a prompt's candidates; None where their scores, or they, are alike.

    They are chosen and put in order by the score less the length's price: s = r(x, y) - λ|y|. Where the judge itself
    tells the two not apart the price alone teaches nothing. The scores in the row are the judge's.
    """
    scores, ids = np.array(sample["scores"]), sample["completion_ids"]
    net = scores - options.length_penalty * np.array(_lengths(options, sample))
    draw = np.random.default_rng(derive(sample["version"], "pair", sample["row"])) if "random" in options.pair else None
    one = int(draw.integers(len(net))) if draw and options.pair == "random" else int(net.argmax())
    others = np.flatnonzero(net != net[one])
    if not len(others):
        return None
    if draw is not None:
        other = int(draw.choice(others))
    else:
        other = int(others[net[others].argmin() if options.pair == "max_min" else net[others].argmax()])
    best, worst = (one, other) if net[one] > net[other] else (other, one)
    if scores[best] == scores[worst] or ids[best] == ids[worst] or not ids[best] or not ids[worst]:
        return None
    told = {"chosen_score": float(scores[best]), "rejected_score": float(scores[worst])}
    return pair_of(sample, best, worst) | told


def best_and_worst(sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """A PAIR row of a prompt's best and worst candidate, the first of equals; None where nothing tells them apart."""
    return pair_by(WorkflowOptions(), sample)


def _lengths(options: WorkflowOptions, sample: Mapping[str, Any]) -> list[int]:
    """|y| of each candidate: its tokens, the one that ends it too; or the characters of its text."""
    if options.length_unit == "token":
        return [len(ids) for ids in sample["completion_ids"]]
    texts = ((said if isinstance(said, str) else said[-1]["content"]) for said in sample["completions"])
    return [len(text) for text in texts]
