"""Rows as the methods want them: read, checked, converted and kept as memory-mapped Arrow.

One pass over any source with memory bounded by a block of rows; every error names file, row and field. The result is
cached by what stands in the source, so the second reading only opens a file. Knows nothing about models or tokenizers.
"""

import json
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from maypole.core.atomic import fsync_directory, fsync_file
from maypole.core.errors import ConfigError, DataError
from maypole.core.identity import cache_dir, digest
from maypole.data.blocks import Block
from maypole.data.checks import checked, renamed
from maypole.data.mix import interleave
from maypole.data.rows import TEXT, RowType
from maypole.data.schema import fitted, grown
from maypole.data.shape import whole_units
from maypole.data.shapes import convert, missing, shape_of
from maypole.data.sources import Opened, many, open_source

if TYPE_CHECKING:
    from datasets import Dataset

    from maypole.data.sources import Source

_FORMAT = "2"  # raised when the same source would be converted to other rows
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """The first rows of a source: how many are kept, how many are dropped by reason, and those kept."""

    kept: int
    dropped: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]]


def read(
    source: "Source | Sequence[Source]",
    row_type: RowType,
    *,
    columns: Mapping[str, str] | None = None,
    mix: Sequence[float] | None = None,
    seed: int = 0,
) -> "Dataset":
    """All rows of `source` as a map-style, memory-mapped Dataset with at least the columns of `row_type`.

    The Dataset's fingerprint is the hash of the sources' contents, row type, columns and mix, under which the rows lie
    in the cache. Raises DataError at the first wrong row, and for a source without rows.

    Parameters
    ----------
    source
        A file (JSONL, JSON, CSV, Parquet, text, Markdown), a folder of them, a `datasets` directory, a hub id
        ``owner/name[:config][#split]``, a Dataset, or several of these, one after the other or mixed by `mix`.
    columns
        Our name -> the source's name, e.g. ``{"text": "body"}``. Other columns travel along.
    mix
        One weight per source, the expected share of rows (see `maypole.data.mix`), drawn by `seed`.
    """
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    opened, columns = _opened(source, row_type, columns, mix)
    key = _key(opened, row_type, columns, mix, seed)
    path = cache_dir("rows", key) / "rows.arrow"
    if not path.is_file():
        _write(_tables(opened, row_type, columns, mix, seed), path, " + ".join(part.name for part in opened))
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)


def stream(
    source: "Source | Sequence[Source]",
    row_type: RowType | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    mix: Sequence[float] | None = None,
    seed: int = 0,
) -> Iterator[pa.RecordBatch]:
    """The rows that `read` gives, in its order, as record batches straight from the source: nothing is copied to disk.

    Without `row_type` nothing is checked or converted. A batch has all columns of the batches before it; later ones
    may have more, or floats where integers were.
    """
    opened, columns = _opened(source, row_type, columns, mix)
    return (
        batch
        for table in _tables(opened, row_type, columns, mix, seed)
        for batch in table.combine_chunks().to_batches()
        if len(batch)
    )


def preview(
    source: "Source | Sequence[Source]",
    row_type: RowType,
    n: int = 1000,
    *,
    columns: Mapping[str, str] | None = None,
    mix: Sequence[float] | None = None,
    seed: int = 0,
    drop: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> Preview:
    """What a run would see in the first `n` rows; wrong rows raise as they would there.

    `drop(row)` gives the reason for which a method leaves a row out, or None.
    """
    kept: list[Mapping[str, Any]] = []
    dropped: Counter[str] = Counter()
    left = n
    for batch in stream(source, row_type, columns=columns, mix=mix, seed=seed):
        for row in batch.slice(0, left).to_pylist():
            if drop is not None and (reason := drop(row)) is not None:
                dropped[reason] += 1
            else:
                kept.append(row)
        left -= min(left, len(batch))
        if not left:
            break
    if not kept and not dropped:
        raise _no_rows(" + ".join(str(part) for part in many(source)))
    return Preview(len(kept), dict(dropped), kept)


def _opened(
    source: "Source | Sequence[Source]",
    row_type: RowType | None,
    columns: Mapping[str, str] | None,
    mix: Sequence[float] | None,
) -> tuple[list[Opened], dict[str, str]]:
    """The sources, found, after `columns` and `mix` were checked against them."""
    columns, sources = dict(columns or {}), many(source)
    if row_type is not None:
        known = [*row_type.columns, *row_type.optional]
        for name in columns:
            if name not in known:
                raise ConfigError(
                    "columns", f"{name}={columns[name]}", f"NAME=COLUMN with NAME one of {', '.join(known)}"
                )
    if mix is not None:
        if len(mix) != len(sources):
            raise ConfigError("mix", tuple(mix), f"one weight per source, here {len(sources)}")
        if not all(math.isfinite(weight) and weight > 0 for weight in mix):
            raise ConfigError("mix", tuple(mix), "weights above 0")
    documents = row_type is None or row_type.name == TEXT.name or "text" in columns.values()
    return [open_source(part, documents=documents) for part in sources], columns


def _key(
    opened: Sequence[Opened],
    row_type: RowType,
    columns: Mapping[str, str],
    mix: Sequence[float] | None,
    seed: int,
) -> str:
    wanted = [row_type.name, dict(row_type.columns), dict(row_type.optional), sorted(columns.items())]
    mixed = [list(map(float, mix)), seed] if mix is not None else None
    return digest("rows", _FORMAT, json.dumps([wanted, mixed]), *(part.identity for part in opened))


class _Schema:
    """The schema of all blocks seen so far, shared by the streams of a mix."""

    def __init__(self) -> None:
        self.now = pa.schema([])

    def take(self, block: Block) -> pa.Table:
        self.now = grown(self.now, block)
        return self.fit(block.table)

    def fit(self, table: pa.Table) -> pa.Table:
        return fitted(table, self.now)


def _tables(
    opened: Sequence[Opened],
    row_type: RowType | None,
    columns: Mapping[str, str],
    mix: Sequence[float] | None,
    seed: int,
) -> Iterator[pa.Table]:
    schema = _Schema()
    streams = [map(schema.take, _rows(part, row_type, columns)) for part in opened]
    if mix is not None:
        yield from interleave(streams, mix, seed, schema.fit)
    else:
        for tables in streams:
            yield from tables


def _rows(opened: Opened, row_type: RowType | None, columns: Mapping[str, str]) -> Iterator[Block]:
    """Blocks of one source: columns renamed, known shapes converted, every row checked."""
    blocks = (renamed(block, columns) for block in opened.blocks())
    if row_type is None:
        yield from blocks
        return
    shape, undecided, late = None, 0, list[int]()
    for block in whole_units(blocks, lambda block: shape_of(block, row_type)):
        made = convert(block, row_type)
        if made.shape and shape is None:
            shape = made.shape
            _log.info("%s: %s rows, converted to %s", opened.name, shape.name, row_type.name)
        undecided, late = undecided + made.undecided, [*late, *made.late]
        if not set(row_type.columns) <= set(made.block.table.column_names):
            raise missing(made.block, row_type)
        if len(made.block.table):
            yield checked(made.block, row_type)
    if undecided:
        _log.warning("%s: %d rows prefer no answer and are left out", opened.name, undecided)
    if late:
        rows = f"{', '.join(map(str, late[:8]))}{', …' if len(late) > 8 else ''}"
        what = "two conversations that part before their last turns: their answers are several turns"
        _log.warning("%s: %d rows (%s) have %s", opened.name, len(late), rows, what)


def _write(tables: Iterator[pa.Table], path: Path, name: str) -> None:
    """Write `tables` to `path` as one Arrow stream, renamed when whole; a schema that grows costs a second copy."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".tmp") as folder:
        segments: list[Path] = []
        schema, writer, rows = pa.schema([]), None, 0
        try:
            for table in tables:
                if writer is None or not table.schema.equals(schema):
                    if writer is not None:
                        writer.close()
                    schema = table.schema
                    segments.append(Path(folder, f"{len(segments)}.arrow"))
                    writer = pa.ipc.new_stream(str(segments[-1]), schema)
                writer.write_table(table)
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
        if not rows:
            raise _no_rows(name)
        whole = segments[0] if len(segments) == 1 else _joined(segments, schema, Path(folder, "whole.arrow"))
        fsync_file(whole)
        os.replace(whole, path)
        fsync_directory(path.parent)


def _joined(segments: Sequence[Path], schema: pa.Schema, path: Path) -> Path:
    with pa.ipc.new_stream(str(path), schema) as writer:
        for segment in segments:
            with pa.memory_map(str(segment)) as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    writer.write_table(fitted(pa.table(batch), schema))
    return path


def _no_rows(name: str) -> DataError:
    return DataError("there are no rows in it", file=name, expected="at least one row")
