"""The rows of a run, step by step: one dataset, or one per round made on the way and kept on the disk.

Knows nothing about models' insides, losses or optimisers.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from maypole.core.atomic import fsync_directory, fsync_file
from maypole.core.errors import DataError, UserError
from maypole.data.reader import read
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.objective import Objective, Rounds
from maypole.train.planner import Order, micro_batches, shares
from maypole.train.ranks import ALONE, Ranks
from maypole.train.tokens import TokenStore, tokenize

log = logging.getLogger(__name__)


class Ended(Exception):
    """There is no further round, though there were to be some."""


@dataclass(frozen=True, slots=True)
class Work:
    """One optimiser step: the rows `chosen` of `store`; `denominator` divides their sums.

    `batches` are computed together; where several processes train they are this one's part of the rows, and none has
    more than `passes` of them. `name` tells stores apart: "round-000" or "eval".
    """

    store: TokenStore
    rows: Dataset
    chosen: np.ndarray
    batches: list[np.ndarray]
    passes: int
    denominator: float
    round: int
    tokens: int
    name: str


class Source:
    """Gives the work of every step by its number. Every round takes as many steps as the first.

    Given rows are read at once, so that what is wrong with them is said before a model is touched.
    A round with fewer rows passes over them again; rows beyond what its steps need are left out.
    """

    def __init__(
        self,
        rows: Dataset | Rounds,
        objective: Objective,
        lm: LanguageModel,
        config: TrainConfig,
        *,
        seed: int,
        folder: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self._given, self._objective, self._lm, self._config = rows, objective, lm, config
        self.max_length, self._seed, self._folder, self._ranks = longest_row(lm, config), seed, folder, ranks
        if ranks.first and (config.max_length or 0) > self.max_length:
            log.warning("max_length %d: the model has positions for %d", config.max_length, self.max_length)
        self.examples_per_step = config.examples_per_step
        self.moments = 1 if config.optim == "rmsprop" else 2
        self.rounds = 1 if isinstance(rows, Dataset) else rows.count
        self.tokens_per_batch = 0  # set once memory is known
        self._current: tuple[int, Dataset, TokenStore] | None = None
        if isinstance(rows, Dataset):
            self._round(0)

    @cached_property
    def steps_per_round(self) -> int:
        if self._config.max_steps > 0:
            return -(-self._config.max_steps // self.rounds)
        return self._order(self._round(0)[1], 0, self._config.num_train_epochs).steps

    @cached_property
    def steps(self) -> int:
        """Of the whole run; the first to ask has the first round made."""
        return self._config.max_steps if self._config.max_steps > 0 else self.steps_per_round * self.rounds

    @property
    def store(self) -> TokenStore:
        """Tokens of the round in progress, of the first one before any."""
        return self._current[2] if self._current is not None else self._round(0)[1]

    def step(self, index: int) -> Work:
        """The work of optimiser step `index`, from 0; asks for a new round's rows where one begins.

        Ended where that is not to be.
        """
        number, within = divmod(index, self.steps_per_round)
        rows, store = self._round(number)
        epochs = None if self._config.max_steps > 0 else self._config.num_train_epochs
        order = self._order(store, number, epochs)
        if epochs is not None and order.steps != self.steps_per_round:
            order = self._order(store, number, None)
        chosen = order.step(within)
        return work(store, rows, chosen, self._objective, self.tokens_per_batch, number, self._lm, self._ranks)

    def epoch(self, steps: int) -> float:
        """Passes over the rows of its round after `steps` steps of the run."""
        within = steps - (steps - 1) // self.steps_per_round * self.steps_per_round if steps else 0
        return within * self.examples_per_step / len(self.store)

    def _order(self, store: TokenStore, number: int, epochs: float | None) -> Order:
        return Order(len(store), self.examples_per_step, epochs, self._seed, number, self._config.shuffle)

    def _round(self, number: int) -> tuple[Dataset, TokenStore]:
        if self._current is None or self._current[0] != number:
            rows = self._given if isinstance(self._given, Dataset) else self._kept(number, self._given)
            store = self._ranks.in_turn(lambda: nonempty(rows, self._objective, self._lm, self.max_length))
            self._current = (number, rows, store)
        return self._current[1], self._current[2]

    def _kept(self, number: int, rounds: Rounds) -> Dataset:
        """The rows of a round: read where they were made before, else made and on the disk before the first step.

        The first of several processes makes them, the others read them.
        """
        path = self._folder / "rounds" / f"{number:03}" / "rows.parquet"
        if not self._ranks.lead(lambda: path.is_file() or self._make(path, number, rounds)):
            raise Ended
        return read(path, self._objective.rows)

    def _make(self, path: Path, number: int, rounds: Rounds) -> bool:
        self._lm.model.eval()
        with torch.random.fork_rng():  # a resumed run does not make them again and must draw the same afterwards
            made = rounds(number, self._lm)
        if made is None:
            return False
        if not len(made):
            raise UserError("it made no rows", f"round {number}", "at least one; nothing is kept of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".tmp")
        with pq.ParquetWriter(part, made.features.arrow_schema) as file:
            for table in made.with_format("arrow").iter(1000):
                file.write_table(table)
        fsync_file(part)
        part.rename(path)
        fsync_directory(path.parent)
        return True


def longest_row(lm: LanguageModel, config: TrainConfig) -> int:
    """Tokens: what is asked for, and no more than the model has positions for."""
    return min(config.max_length or lm.max_length, lm.max_length)


def nonempty(
    rows: Dataset, objective: Objective, lm: LanguageModel, max_length: int, where: str = "rows"
) -> TokenStore:
    """The tokens of `rows`; UserError with the reasons where none is left."""
    for name in objective.columns:
        if name not in rows.column_names:
            raise DataError(f"the column is missing; found {', '.join(rows.column_names)}", field=name)
    store = tokenize(rows, objective, lm.tokenizer, max_length)
    if not len(store):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in store.dropped.items())
        raise UserError(f"none of {len(rows)} rows can teach anything ({reasons or 'there are none'})", where)
    if store.dropped:
        log.info("rows left out: %s", store.dropped)
    return store


def work(
    store: TokenStore,
    rows: Dataset,
    chosen: np.ndarray,
    objective: Objective,
    budget: int,
    round: int | None,
    lm: LanguageModel,
    ranks: Ranks,
) -> Work:
    """The store's rows `chosen` as batches of at most `budget` tokens; `round` None is evaluation."""
    lengths = store.lengths_of(chosen)
    # A token's attention costs its context times d, its matrix products about twelve times d squared.
    width: int = lm.transformer.config.get_text_config().hidden_size
    parts = shares(lengths + lengths**2 / (12 * width), ranks.size) if ranks.size > 1 else [np.arange(len(chosen))]
    packed = [[chosen[part][b] for b in micro_batches(lengths[part], budget)] for part in parts]
    denominator = store.weight_of(chosen) if objective.unit == "tokens" else float(len(chosen))
    name = "eval" if round is None else f"round-{round:03}"
    passes = max(map(len, packed))
    return Work(store, rows, chosen, packed[ranks.rank], passes, denominator, round or 0, int(lengths.sum()), name)
