"""The rows of a run, step by step: one dataset, or one per round made on the way and kept on the disk.

Knows nothing about models' insides, losses or optimisers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from maypole.core.atomic import fsync_directory, fsync_file
from maypole.core.errors import UserError
from maypole.models.language_model import LanguageModel
from maypole.train.objective import Objective, Rounds
from maypole.train.planner import Order, micro_batches
from maypole.train.tokens import TokenStore, tokenize

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """One optimiser step: rows of `store` in `batches` that are computed together; `denominator` divides its sums."""

    store: TokenStore
    rows: Dataset
    batches: list[np.ndarray]
    denominator: float
    round: int
    tokens: int


class Source:
    """Gives the work of every step by its number. Every round takes as many steps as the first.

    A round with fewer rows passes over them again; rows beyond what its steps need are left out.
    """

    def __init__(
        self,
        rows: Dataset | Rounds,
        objective: Objective,
        lm: LanguageModel,
        *,
        max_length: int,
        examples_per_step: int,
        epochs: float,
        max_steps: int,
        seed: int,
        folder: Path,
        shuffle: bool = True,
    ) -> None:
        self._given, self._objective, self._lm, self._max_length = rows, objective, lm, max_length
        self.examples_per_step, self._epochs, self._seed, self._folder = examples_per_step, epochs, seed, folder
        self._shuffle = shuffle
        self.rounds = 1 if isinstance(rows, Dataset) else rows.count
        self.tokens_per_batch = 0  # set once memory is known
        self.before_round: Callable[[int], None] = lambda round: None
        self._current: tuple[int, Dataset, TokenStore, Order] | None = None
        first = self._round(0)
        self.steps_per_round = first.steps if max_steps < 0 else -(-max_steps // self.rounds)
        self.steps = self.steps_per_round * self.rounds if max_steps < 0 else max_steps

    @property
    def store(self) -> TokenStore:
        """Tokens of the round in progress."""
        assert self._current is not None
        return self._current[2]

    def step(self, index: int) -> Work:
        """The work of optimiser step `index`, from 0; asks for a new round's rows where one begins."""
        number, within = divmod(index, self.steps_per_round)
        order = self._round(number)
        assert self._current is not None
        _, rows, store, _ = self._current
        chosen = order.step(within)
        lengths = store.lengths_of(chosen)
        batches = [chosen[b] for b in micro_batches(lengths, self.tokens_per_batch)]
        denominator = store.weight_of(chosen) if self._objective.unit == "tokens" else float(len(chosen))
        return Work(store, rows, batches, denominator, number, int(lengths.sum()))

    def _round(self, number: int) -> Order:
        if self._current is not None and self._current[0] == number:
            return self._current[3]
        if self._current is not None:
            self.before_round(number)
        rows = self._given if isinstance(self._given, Dataset) else self._kept(number, self._given)
        store = tokenize(rows, self._objective, self._lm.tokenizer, self._max_length)
        if not len(store):
            reasons = ", ".join(f"{count} {reason}" for reason, count in store.dropped.items())
            raise UserError("no row is left to train on", f"{len(rows)} rows", reasons or "give at least one row")
        if store.dropped:
            log.info("rows left out: %s", store.dropped)
        order = Order(len(store), self.examples_per_step, self._epochs, self._seed, number, self._shuffle)
        self._current = (number, rows, store, order)
        return order

    def _kept(self, number: int, rounds: Rounds) -> Dataset:
        """The rows of a round: read where they were made before, else made and on the disk before the first step."""
        path = self._folder / "rounds" / f"{number:03}" / "rows.parquet"
        if not path.is_file():
            made = rounds(number, self._lm)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".tmp")
            made.to_parquet(str(part))
            fsync_file(part)
            part.rename(path)
            fsync_directory(path.parent)
        return Dataset.from_parquet(str(path), keep_in_memory=False)  # type: ignore[return-value]
