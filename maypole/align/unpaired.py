"""Learning from single answers that are good or bad: KTO.

Its reference point is the mean log ratio of answers to prompts that are not their own, over a whole step: each row
carries such an answer. Knows nothing about files or where the reference comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from maypole.align.preference_options import PreferenceOptions
from maypole.core.identity import digest
from maypole.data.chat import Dropped
from maypole.data.rows import UNPAIRED, RowType
from maypole.train import losses
from maypole.train.answers import answer_tree
from maypole.train.objective import Loss, Need, Segment, TokenBatch

COMPLETION, KL_COMPLETION = "completion", "kl_completion"


@dataclass(frozen=True, slots=True)
class Unpaired:
    """KTO on `UNPAIRED` rows with the column that `with_other_answers` adds; metrics have trl's names and meaning."""

    options: PreferenceOptions = PreferenceOptions(loss="kto")

    rows: ClassVar[RowType] = RowType(
        "UNPAIRED", {**UNPAIRED.columns, KL_COMPLETION: UNPAIRED.columns[COMPLETION]}, optional=UNPAIRED.optional
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "baseline"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ("label",)

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return answer_tree(row, (COMPLETION, KL_COMPLETION), tokenizer)

    def baseline(self, batch: TokenBatch) -> torch.Tensor:
        return (batch.sums(KL_COMPLETION) - batch.sums(KL_COMPLETION, reference=True)).sum()

    def __call__(self, batch: TokenBatch) -> Loss:
        policy, reference = batch.sums(COMPLETION), batch.sums(COMPLETION, reference=True)
        good = torch.as_tensor(batch.columns["label"], device=policy.device).bool()
        kl = max(batch.baseline or 0.0, 0.0)
        loss = losses.kto(policy, reference, good, kl, **self.options.parameters).sum()
        policy = policy.detach()
        rewards = self.options.parameters["beta"] * (policy - reference)
        metrics: dict[str, Any] = {"kl": kl * batch.rows}
        for name, chosen in (("chosen", good), ("rejected", ~good)):
            metrics[f"rewards/{name}"] = (rewards[chosen].sum(), chosen.sum())
            metrics[f"logps/{name}"] = (policy[chosen].sum(), chosen.sum())
        return Loss(loss, metrics)


def with_other_answers(rows: Dataset) -> Dataset:
    """Each row with the answer of another one, as the column that KTO's reference point is estimated on.

    The other row is neither a neighbour nor half the rows away: answers to one prompt often stand so.
    """
    count = len(rows)
    shift = max(1, round(0.38 * count))
    answers = rows.select_columns([COMPLETION]).rename_column(COMPLETION, KL_COMPLETION)
    parts = [part for part in (answers.select(range(shift, count)), answers.select(range(shift))) if len(part)]
    made = concatenate_datasets([rows, concatenate_datasets(parts)], axis=1)
    made._fingerprint = digest("with other answers", rows._fingerprint)
    return made
