"""The rows of an online run once more, as rounds for `fit`: in their order, or dealt anew. Knows nothing of losses."""

from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from maypole.core.seeds import derive
from maypole.data import PAIR, read
from maypole.models.language_model import LanguageModel


class Recorded:
    """Every round has the rows that it had in the run that lies in `run`."""

    def __init__(self, run: Path, count: int) -> None:
        self.run, self.count = run, count

    def rows(self, round: int) -> Dataset:
        return read(self.run / "rounds" / f"{round:03}" / "rows.parquet", PAIR)

    def __call__(self, round: int, lm: LanguageModel) -> Dataset:
        return self.rows(round)


class Shuffled(Recorded):
    """Every round has as many rows as it had there, dealt out from all rows of all rounds: the same data, only the
    order is lost."""

    def __init__(self, run: Path, count: int, *, seed: int) -> None:
        super().__init__(run, count)
        self._seed = seed
        self._dealt: list[Dataset] = []

    def rows(self, round: int) -> Dataset:
        if not self._dealt:
            every = [super(Shuffled, self).rows(number) for number in range(self.count)]
            whole = concatenate_datasets(every)
            order = np.random.default_rng(derive(self._seed, "shuffled")).permutation(len(whole))
            ends = np.cumsum([len(rows) for rows in every])
            self._dealt = [whole.select(part) for part in np.split(order, ends[:-1])]
        return self._dealt[round]
