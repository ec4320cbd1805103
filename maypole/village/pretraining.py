"""Documents with their loss weights as rows that `fit` takes. Knows nothing about what they say or who learns them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.core.identity import hasher
from maypole.data.chat import Dropped
from maypole.data.rows import RowType
from maypole.train.objective import Loss, Need, Segment, TokenBatch
from maypole.train.supervised import negative_log_likelihood
from maypole.village.mix import Document

DOCUMENTS = RowType("DOCUMENTS", {})
"""Rows of the mix: `ids` and `weights`, made by `maypole.village.mix` and not by users."""
SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())})
CHUNK = 1024
"""Documents turned into Arrow at a time."""


@dataclass(frozen=True, slots=True)
class PretrainingMix:
    """Documents with token ids and loss weights at hand."""

    rows: ClassVar[RowType] = DOCUMENTS
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ("ids", "weights")

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return Segment(list(row["ids"]), list(row["weights"]))

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


def dataset(documents: Iterator[Document]) -> Dataset:
    """The documents in their order; the fingerprint is that of their content."""
    state, batches = hasher(), []
    while chunk := list(islice(documents, CHUNK)):
        columns = [pa.array([document[name] for document in chunk], SCHEMA.field(name).type) for name in SCHEMA.names]
        for column in columns:
            for buffer in (column.offsets, column.values):
                state.update(buffer.to_numpy(zero_copy_only=False).tobytes())
        batches.append(pa.record_batch(columns, schema=SCHEMA))
    made: Any = Dataset(pa.Table.from_batches(batches, SCHEMA), fingerprint=state.hexdigest())
    return made
