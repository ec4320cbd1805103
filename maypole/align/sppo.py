"""SPPO: self-play by a judge of pairs (arXiv 2405.00675).

Each round the policy answers every prompt k times, a judge says how often each answer beats the others, and every
answer's log-prob is drawn to ``η (rate of winning - ½)`` above what it was. Nothing assumes that preferences are
transitive. Knows nothing about judges, engines or rounds: `maypole.align.online` has those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.align.method import JudgeKind, pair_of, rows_from
from maypole.align.preference import CHOSEN, REJECTED, preference_metrics
from maypole.align.preference_matrix import win_rates
from maypole.core.config import check
from maypole.core.errors import ConfigError, DataError
from maypole.data.chat import Dropped
from maypole.data.rows import PAIR, SAMPLES, RowType
from maypole.engine.request import Sampling
from maypole.train.answers import answer_tree
from maypole.train.losses import sppo, sppo_pointwise
from maypole.train.objective import Loss, Need, Objective, Segment, TokenBatch

Variant = Literal["soft", "single", "hard"]
Select = Literal["max_min", "all"]


@dataclass(frozen=True, slots=True)
class BestAndWorst:
    """The loss on PAIR rows with the columns of the published sets: ``chosen_probs`` = P(chosen ≻ rejected),
    ``chosen_probs_win`` and ``chosen_probs_lose`` how often each of them wins against all answers to its prompt.

    Metrics are those of `Pairs` with β = 1/η, and ``distance``: the loss in units of η², which says how far the
    answers are from their targets.
    """

    eta: float = 1000.0
    variant: Variant = "soft"

    rows: ClassVar[RowType] = PAIR
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ("chosen_probs", "chosen_probs_win", "chosen_probs_lose")

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        for name in self.columns:
            _check_probabilities(name, [row[name]])
        return answer_tree(row, (CHOSEN, REJECTED), tokenizer)

    def targets(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """p of the chosen and of the rejected answers: (pairs,) each."""
        beats, wins, loses = (torch.as_tensor(batch.columns[name]).float() for name in self.columns)
        if self.variant == "soft":
            return wins, loses
        return (beats, 1 - beats) if self.variant == "single" else (torch.ones_like(wins), torch.zeros_like(wins))

    def __call__(self, batch: TokenBatch) -> Loss:
        chosen, rejected = batch.sums(CHOSEN), batch.sums(REJECTED)
        before = batch.sums(CHOSEN, reference=True), batch.sums(REJECTED, reference=True)
        loss = sppo(chosen, rejected, *before, *self.targets(batch), eta=self.eta).sum()
        chosen, rejected = chosen.detach(), rejected.detach()
        rewards = (chosen - before[0]) / self.eta, (rejected - before[1]) / self.eta
        metrics = preference_metrics(chosen, rejected, *rewards)
        return Loss(loss, {**metrics, "distance": loss.detach() / self.eta**2})


def _check_probabilities(name: str, values: Any) -> None:
    for value in values:
        if not 0 <= value <= 1:  # NaN too
            raise DataError(f"{value} is no rate of winning", field=name, expected="0 to 1")


@dataclass(frozen=True, slots=True)
class AllAnswers:
    """The loss on every answer of SAMPLES rows, whose ``scores`` are rates of winning; a row is the mean of its k.

    This is the paper's expectation over answers of the policy, which best and worst alone are not, and needs k/2
    times the tokens; the prompt is computed once for all.
    """

    eta: float = 1000.0

    rows: ClassVar[RowType] = SAMPLES
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ("scores",)

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        _check_probabilities("scores", row["scores"])
        answers = {str(i): answer for i, answer in enumerate(row["completions"])}
        ids = {f"{i}_ids": ids for i, ids in enumerate(row.get("completion_ids") or ())}
        prompt = {"prompt": row["prompt"], "prompt_ids": row.get("prompt_ids")}
        return answer_tree({**prompt, **answers, **ids}, tuple(answers), tokenizer)

    def __call__(self, batch: TokenBatch) -> Loss:
        rates: Any = batch.columns["scores"]
        most = max(map(len, rates))
        # A row with fewer answers than the longest gets some of no tokens that stay where they are: p = ½, no loss.
        p = torch.tensor([[*row, *[0.5] * (most - len(row))] for row in rates], device=batch.logps.device)
        now = torch.stack([batch.sums(str(i)) for i in range(most)], 1)
        before = torch.stack([batch.sums(str(i), reference=True) for i in range(most)], 1)
        answers = torch.tensor([float(len(row)) for row in rates], device=p.device)
        loss = (sppo_pointwise(now, before, p, eta=self.eta).sum(1) / answers).sum()
        return Loss(loss, {"distance": loss.detach() / self.eta**2})


@dataclass(frozen=True, slots=True)
class Sppo:
    """The method for `maypole.align.online`: training on the best and the worst of a prompt's k answers, or on all.

    It is meant for ``reference="previous"``: π_t is the policy that the round began with. Draws at temperature 1 are
    those whose rates of winning against the policy are not biased. A prompt whose answers all win as often teaches
    nothing and is left out.

    Parameters
    ----------
    sampling
        ``n`` is k. An answer cut at ``max_tokens`` is learnt without an end.
    eta
        How many nats lie between an answer that always wins and one that always loses. The paper's 1000 is never
        reached, so that the learning rate decides where training ends; with 4 to 16 the targets can be met.
    variant
        "soft": rates of winning against all k. "single": P(best ≻ worst). "hard": 1 and 0.
    select
        "max_min": the best and the worst by their rates. "all": every answer, by the soft rates.
    """

    sampling: Sampling = Sampling(n=5)
    eta: float = 1000.0
    variant: Variant = "soft"
    select: Select = "max_min"

    def __post_init__(self) -> None:
        if not self.eta > 0:
            raise ConfigError("eta", self.eta, "above 0")
        check("variant", self.variant, ("soft", "single", "hard"))
        check("select", self.select, ("max_min", "all"))
        if self.select == "all" and self.variant != "soft":
            raise ConfigError("variant", self.variant, "soft with --select all: others are of a best and a worst")

    @property
    def objective(self) -> Objective:
        return AllAnswers(self.eta) if self.select == "all" else BestAndWorst(self.eta, self.variant)

    @property
    def draws(self) -> tuple[Sampling, ...]:
        return (self.sampling,)

    @property
    def answers(self) -> tuple[str, ...]:
        return ()

    @property
    def judge(self) -> JudgeKind:
        return "preference"

    def rows(self, samples: Dataset) -> Dataset:
        return rows_from(samples, _every if self.select == "all" else best_and_worst)


def best_and_worst(sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of `BestAndWorst` for one prompt's judged answers; None where all win as often as each other."""
    matrix = np.asarray(sample["probabilities"])
    p = win_rates(matrix)
    best, worst = int(p.argmax()), int(p.argmin())
    ids = sample["completion_ids"]
    if p[best] == p[worst] or not ids[best] or not ids[worst]:
        return None
    return pair_of(sample, best, worst) | {
        "chosen_probs": float(matrix[best, worst]),
        "chosen_probs_win": float(p[best]),
        "chosen_probs_lose": float(p[worst]),
    }


def _every(sample: Mapping[str, Any]) -> dict[str, Any] | None:
    p = win_rates(sample["probabilities"])
    if p.max() == p.min() or not all(sample["completion_ids"]):
        return None
    kept = {name: sample[name] for name in ("prompt", "completions", "prompt_ids", "completion_ids")}
    return {**kept, "scores": p.tolist()}
