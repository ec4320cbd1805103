"""Two answers of a policy to a prompt as a labelled pair, and what is learnt from it: a contrast, or the winner alone.

Knows nothing about where policies, judges or prompts come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.align.method import JudgeKind, pair_of, rows_from
from maypole.align.online_offline_gap.config import Labels
from maypole.align.preference import CHOSEN
from maypole.core.seeds import uniform
from maypole.data.chat import Dropped
from maypole.data.rows import PAIR, RowType
from maypole.engine.request import Sampling
from maypole.train.answers import answer_tree
from maypole.train.objective import Loss, Need, Objective, Segment, TokenBatch


@dataclass(frozen=True, slots=True)
class Winner:
    """-log π(y_w) of the answer that was chosen, summed over its tokens: best of two, without a contrast."""

    rows: ClassVar[RowType] = PAIR
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return answer_tree(row, (CHOSEN,), tokenizer)

    def __call__(self, batch: TokenBatch) -> Loss:
        return Loss(-batch.sums(CHOSEN).sum())


@dataclass(frozen=True, slots=True)
class FreshPairs:
    """The method for `maypole.align.online`: two answers at temperature 1, labelled by the judge.

    Two answers that are alike, or that the judge finds equal under hard labels, make no pair.
    """

    objective: Objective
    max_tokens: int
    labels: Labels
    seed: int

    @property
    def draws(self) -> tuple[Sampling, ...]:
        return (Sampling(n=2, max_tokens=self.max_tokens, temperature=1.0),)

    @property
    def answers(self) -> tuple[str, ...]:
        return ()

    @property
    def judge(self) -> JudgeKind:
        return "preference"

    def rows(self, samples: Dataset) -> Dataset:
        return rows_from(samples, self.pair)

    def pair(self, sample: Mapping[str, Any]) -> dict[str, Any] | None:
        first, second = sample["completion_ids"]
        if first == second or not first or not second:
            return None
        p = sample["probabilities"][0][1]
        wins = first_wins(p, self.labels, self.seed, sample["version"], sample["row"])
        return None if wins is None else pair_of(sample, int(not wins), int(wins))


def first_wins(p: float, labels: Labels, seed: int, *place: str | int) -> bool | None:
    """Whether the first of two answers, better with probability `p`, is the chosen one; None: they are equal.

    A drawn label depends on the seed and the pair's `place` alone.
    """
    if labels == "drawn":
        return uniform(seed, "label", *place) < p
    return None if p == 0.5 else p > 0.5
