"""Learning from pairs: of two answers to one prompt one was chosen, and the prompt is computed once for both.

The losses themselves are in `maypole.train.losses`. Knows nothing about files or where the reference comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from maypole.align.preference_options import WITHOUT_REFERENCE, PreferenceOptions
from maypole.align.unpaired import Unpaired
from maypole.data.chat import Dropped
from maypole.data.rows import PAIR, RowType
from maypole.train import losses
from maypole.train.answers import answer_tree
from maypole.train.objective import Loss, Need, Objective, Segment, TokenBatch

CHOSEN, REJECTED = "chosen", "rejected"
ALIKE = "chosen and rejected are alike"

_FUNCTIONS = {
    "dpo": losses.dpo,
    "cdpo": losses.dpo,
    "robust": losses.robust,
    "rpo": losses.rpo,
    "ipo": losses.ipo,
    "ipo-sum": losses.ipo,
    "hinge": losses.hinge,
    "simpo": losses.simpo,
    "orpo": losses.orpo,
}
_LENGTHS = {"ipo": 2, "simpo": 2, "orpo": 2, "rpo": 1}
"""Of how many answers a loss wants to know the length, the chosen one first."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """A loss on `PAIR` rows that holds to a reference; its metrics have trl's names and are means over pairs.

    Rewards are β log π/π_ref.
    """

    options: PreferenceOptions = PreferenceOptions()

    rows: ClassVar[RowType] = PAIR
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        mine = [loss for loss in _FUNCTIONS if (loss in WITHOUT_REFERENCE) != bool(self.needs)]
        if self.options.loss not in mine:
            raise ValueError(f"{type(self).__name__} has the losses {', '.join(mine)}, not {self.options.loss}")

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        tree = answer_tree(row, (CHOSEN, REJECTED), tokenizer)
        if isinstance(tree, Segment) and tree.children[0].ids == tree.children[1].ids:
            return Dropped(ALIKE)
        return tree

    def __call__(self, batch: TokenBatch) -> Loss:
        chosen, rejected = batch.sums(CHOSEN), batch.sums(REJECTED)
        counts = batch.counts(CHOSEN).clamp(min=1), batch.counts(REJECTED).clamp(min=1)
        lengths = counts[: _LENGTHS.get(self.options.loss, 0)]
        parameters = self.options.parameters
        references: tuple[torch.Tensor, ...] = ()
        if self.needs:
            references = batch.sums(CHOSEN, reference=True), batch.sums(REJECTED, reference=True)
        loss = _FUNCTIONS[self.options.loss](chosen, rejected, *references, *lengths, **parameters)
        chosen, rejected = chosen.detach(), rejected.detach()
        if references:
            rewards = chosen - references[0], rejected - references[1]
        else:
            chosen, rejected = rewards = chosen / counts[0], rejected / counts[1]
        return Loss(loss.sum(), preference_metrics(chosen, rejected, *(parameters["beta"] * r for r in rewards)))


class PairsWithoutReference(Pairs):
    """A loss on `PAIR` rows that knows the policy only; rewards are β times the mean log-prob of a token."""

    __slots__ = ()
    needs: ClassVar[frozenset[Need]] = frozenset()


def objective_of(options: PreferenceOptions) -> Objective:
    """The objective that has the loss which `options` name."""
    if options.loss == "kto":
        return Unpaired(options)
    return (PairsWithoutReference if options.loss in WITHOUT_REFERENCE else Pairs)(options)


def preference_metrics(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sums over pairs under the names that trl gives to their means; all (pairs,)."""
    return {
        "rewards/chosen": chosen_rewards.sum(),
        "rewards/rejected": rejected_rewards.sum(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).sum(),
        "rewards/margins": (chosen_rewards - rejected_rewards).sum(),
        "logps/chosen": chosen.sum(),
        "logps/rejected": rejected.sum(),
    }
