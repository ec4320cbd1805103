"""What a round learns from again: rows of earlier rounds, and pairs that were given before the first.

Every row has the round that it is of in the column ``round``. Knows nothing about models, judges or files.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from maypole.core.errors import DataError
from maypole.core.seeds import derive
from maypole.data.rows import RowType

ROUND = "round"
GIVEN = -1
"""The round that given rows are of: the one before the first."""


def given_rows(rows: Dataset, kind: RowType, prompts: pa.DataType) -> pa.Table:
    """Rows of type `kind` as those of round -1; DataError where their prompts are not of the form `prompts`, which the
    run's own rows have."""
    for name in kind.columns:
        if name not in rows.column_names:
            raise DataError(f"the column is missing; found {', '.join(rows.column_names)}", field=name)
    forms = [("text" if pa.types.is_string(of) else "messages") for of in (_arrow(rows)["prompt"], prompts)]
    if forms[0] != forms[1]:
        raise DataError(f"the prompts are {forms[0]}, those to be answered {forms[1]}", field="prompt")
    table: Any = rows.with_format("arrow")[:]
    known = [name for name in table.column_names if name in kind.columns or name in kind.optional]
    return of_round(table.select(known), GIVEN)


def of_round(rows: pa.Table, round: int) -> pa.Table:
    return rows.append_column(ROUND, pa.array([round] * len(rows), pa.int64()))


def joined(
    made: Dataset, earlier: Sequence[pa.Table], how: Literal["all", "sample"], round: int, *, seed: int
) -> Dataset:
    """The rows `made` in `round` after those of `earlier`: all of them, or as many as were made, drawn by the seed."""
    table: Any = made.with_format("arrow")[:]
    own, before = of_round(table, round), list(earlier)
    if how == "sample" and before:
        every = pa.concat_tables(before, promote_options="permissive")
        rng = np.random.default_rng(derive(seed, "history", round))
        before = [every.take(np.sort(rng.permutation(len(every))[: len(own)]))]
    return Dataset(InMemoryTable(pa.concat_tables([*before, own], promote_options="permissive")))


def _arrow(rows: Dataset) -> dict[str, pa.DataType]:
    schema = rows.features.arrow_schema
    return dict(zip(schema.names, schema.types))
