"""What a method gives to the loop: which tokens its rows have, and a loss over their log-probabilities.

Knows nothing about packing, heads, optimisers or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.data.chat import Dropped
from maypole.data.rows import RowType
from maypole.models.language_model import LanguageModel

Need = Literal["reference", "baseline", "hidden", "scores"]
ALSO = "+"
"""Joins the names of a segment that stands for several."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that follows its parent's; children share it without repeating it.

    `weights[i]` is the weight of predicting ``ids[i]``, 0 for context. The first token of a child is predicted from
    its parent's last one; the first token of a root is never predicted. A segment that stands for several has their
    names joined by "+", and counts for each.
    """

    ids: list[int]
    weights: list[float]
    name: str = ""
    children: tuple["Segment", ...] = ()


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over a batch, divided by the step's denominator afterwards; `metrics` are sums too.

    A metric that is a mean over some rows only is a pair: the sum, and how many there are.
    """

    sum: torch.Tensor
    metrics: Mapping[str, torch.Tensor | float | tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(slots=True)
class TokenBatch:
    """The N scored tokens of R rows with S segments.

    logps: (N,) with grad where the objective is not linear; reference: (N,) or None; weights: (N,);
    segment: (N,) -> S; names: S; row: (S,) -> R; columns: the rows' own columns, (R,) each;
    hidden: (N, d_model), the states that predict the scored tokens, where the objective needs them.
    Where it needs scores they are (N,), what a score head reads at the scored tokens themselves; a model that has one
    predicts no tokens, so logps is empty, and hidden are the states that the head reads.
    baseline: the mean over all rows of the step, in whatever batches they are, of what `WithBaseline.baseline` gives.
    """

    logps: torch.Tensor
    weights: torch.Tensor
    segment: torch.Tensor
    names: list[str]
    row: torch.Tensor
    rows: int
    reference: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    baseline: float | None = None
    columns: dict[str, torch.Tensor | list[Any]] = field(default_factory=dict)

    def sums(self, name: str, *, reference: bool = False) -> torch.Tensor:
        """(R,) weighted log-probs of each row summed over its segments called `name`, of the policy or reference."""
        logps = self.reference if reference else self.logps
        if logps is None:
            raise ValueError("the objective does not list 'reference' among its needs")
        return self._by_row(name, logps * self.weights)

    def score(self, name: str) -> torch.Tensor:
        """(R,) the score of each row's segment called `name`."""
        if self.scores is None:
            raise ValueError("the objective does not list 'scores' among its needs")
        return self._by_row(name, self.scores)

    def _by_row(self, name: str, values: torch.Tensor) -> torch.Tensor:
        values = torch.where(self._called(name)[self.segment], values, values.new_zeros(()))
        return values.new_zeros(self.rows).index_add(0, self.row[self.segment], values)

    def counts(self, name: str) -> torch.Tensor:
        """(R,) scored tokens of each row in its segments called `name`."""
        ones = self._called(name)[self.segment].to(self.weights.dtype)
        return self.weights.new_zeros(self.rows).index_add(0, self.row[self.segment], ones)

    def _called(self, name: str) -> torch.Tensor:
        """(S,) whether that is the segment's name, or one of them."""
        return torch.tensor([name in n.split(ALSO) for n in self.names], device=self.row.device)


class Objective(Protocol):
    """A frozen dataclass; a new training method is one of these.

    `unit` is what a step's sum is divided by: the summed weights of its tokens, or its rows. `linear` promises that
    the loss is ``-sum(weights * logps)``, whose gradient the head makes in one pass. `overlong` says what happens to
    a row longer than max_length: "split" into rows that go on where the last ended, "cut" at the end, or "drop", for
    what is read at the end. Objectives that need scores are for models with a score head, all others for causal LMs.
    `columns` are the row columns that `__call__` wants to see.
    """

    rows: ClassVar[RowType]
    needs: ClassVar[frozenset[Need]]
    unit: ClassVar[Literal["tokens", "rows"]]
    linear: ClassVar[bool]
    overlong: ClassVar[Literal["split", "cut", "drop"]]
    columns: ClassVar[tuple[str, ...]]

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        """The tokens of one row, or why it is left out; reasons are counted."""
        ...

    def __call__(self, batch: TokenBatch) -> Loss: ...


class WithBaseline(Objective, Protocol):
    """An objective that lists "baseline" among its needs: a number of the whole step, found before any gradient."""

    def baseline(self, batch: TokenBatch) -> torch.Tensor:
        """Its sum over the rows of a batch; no gradient is taken of it."""
        ...


class Rounds(Protocol):
    """Rows made on the way: called between optimiser steps, so that one optimiser and schedule span all rounds.

    None instead of rows ends the run with the weights that the last round left.
    """

    count: int

    def __call__(self, round: int, lm: LanguageModel) -> Dataset | None: ...
