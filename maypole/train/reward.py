"""Learning to judge: scores by Bradley-Terry for a model with a score head, the better one's letter for a causal LM.

Knows nothing about files, loops or where a judge is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from maypole.data.chat import Dropped, encode_whole
from maypole.data.pair_question import PairQuestion
from maypole.data.rows import PAIR, RowType
from maypole.train.losses.bradley_terry import bradley_terry
from maypole.train.losses.pair_preference import pair_preference
from maypole.train.objective import Loss, Need, Segment, TokenBatch

CHOSEN, REJECTED = "chosen", "rejected"


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """Each answer's score is read at the end of prompt + answer; what the two begin with in common is computed once."""

    center: float = 0.0
    rows: ClassVar[RowType] = PAIR
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "drop"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        chosen, rejected = (encode_whole(row["prompt"], row[name], tokenizer) for name in (CHOSEN, REJECTED))
        return _fork(chosen, rejected, weight=1.0)

    def __call__(self, batch: TokenBatch) -> Loss:
        chosen, rejected = batch.score(CHOSEN), batch.score(REJECTED)
        loss = bradley_terry(chosen, rejected, _margin(batch, chosen), center=self.center)
        ahead = (chosen - rejected).detach()
        return Loss(loss.sum(), {"accuracy": (ahead.sign() + 1).sum() / 2, "ahead": ahead.sum()})


class BradleyTerryWithMargin(BradleyTerry):
    """The same for rows with a column `margin`: by how much the chosen answer is better; null is 0."""

    __slots__ = ()
    columns: ClassVar[tuple[str, ...]] = ("margin",)


@dataclass(frozen=True, slots=True)
class PairPreference:
    """The letter of the better answer, asked in both orders; the context of the question is computed once."""

    question: PairQuestion = field(default_factory=PairQuestion)
    rows: ClassVar[RowType] = PAIR
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "drop"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        prompt, chosen, rejected = (row[name] for name in ("prompt", CHOSEN, REJECTED))
        chosen_first, (a, _) = self.question.encode(prompt, chosen, rejected, tokenizer)
        rejected_first, (_, b) = self.question.encode(prompt, rejected, chosen, tokenizer)
        return _fork([*chosen_first, a], [*rejected_first, b], weight=0.5)

    def __call__(self, batch: TokenBatch) -> Loss:
        # Each letter weighs a half in its segment, and the sums have that in them.
        return Loss(pair_preference(2 * batch.sums(CHOSEN), 2 * batch.sums(REJECTED)).sum())


def _fork(chosen: list[int], rejected: list[int], *, weight: float) -> Segment | Dropped:
    """Two texts as a tree: what they begin with in common, then each with its last token scored."""
    if min(len(chosen), len(rejected)) < 2:
        return Dropped("fewer than two tokens")
    short = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    children = (
        Segment(ids[shared:], [0.0] * (len(ids) - shared - 1) + [weight], name)
        for ids, name in ((chosen, CHOSEN), (rejected, REJECTED))
    )
    return Segment(chosen[:shared], [0.0] * shared, "prompt", tuple(children))


def _margin(batch: TokenBatch, like: torch.Tensor) -> torch.Tensor | float:
    found = batch.columns.get("margin")
    if found is None or isinstance(found, torch.Tensor):
        return 0.0 if found is None else found.to(like)
    return like.new_tensor([0.0 if m is None else float(m) for m in found])
