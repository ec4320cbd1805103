"""Sources that are tables already: Parquet, CSV, directories of `datasets` and data sets of the hub.

Each becomes a stream of blocks with plain types. Knows nothing about row types.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from maypole.core.errors import DataError
from maypole.data.blocks import ROWS_PER_BLOCK, Block
from maypole.data.files import check_utf8, opened
from maypole.data.schema import plain_table

if TYPE_CHECKING:
    from datasets import Dataset

_CSV_BLOCK = 16 << 20  # also the longest row that a CSV can have


def parquet(path: Path, shown: str) -> Iterator[Block]:
    """Blocks of a Parquet file; raises DataError where it is none or is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            done = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BLOCK):
                yield Block(shown, range(done + 1, done + 1 + len(batch)), plain_table(pa.table(batch)))
                done += len(batch)
    except (pa.ArrowException, OSError) as error:
        what = f"no readable Parquet file: {_first_line(error)}"
        raise DataError(what, file=shown, expected="a complete Parquet file") from error


def csv(path: Path, shown: str) -> Iterator[Block]:
    """Blocks of a CSV or TSV file with a header line. A CSV knows text only, so every column holds strings.

    Rows are counted without the header. Raises DataError at a row with another number of fields.
    """
    tabs = ".tsv" in path.suffixes
    done = 0
    with opened(path, shown) as file:
        names = _header(file.peek(1 << 16)[: 1 << 16], tabs, shown)
        try:
            reader = pyarrow.csv.open_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
                parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if tabs else ",", newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={name: pa.string() for name in names}, strings_can_be_null=False
                ),
            )
            for batch in reader:
                for start in range(0, len(batch), ROWS_PER_BLOCK):
                    part = batch.slice(start, ROWS_PER_BLOCK)
                    yield Block(shown, range(done + 1, done + 1 + len(part)), pa.table(part), textual=True)
                    done += len(part)
        except pa.ArrowInvalid as error:
            raise _csv_error(error, path, shown) from error


def _header(start: bytes, tabs: bool, shown: str) -> list[str]:
    """Column names of the header line, so that each can be given its type before the first row is read."""
    line = start.removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        raise DataError("the file is empty", file=shown, expected="a header line with the column names")
    options = pyarrow.csv.ReadOptions(use_threads=False)
    parse = pyarrow.csv.ParseOptions(delimiter="\t" if tabs else ",")
    try:
        first = pyarrow.csv.read_csv(pa.BufferReader(line.splitlines()[0] + b"\n"), options, parse)
    except pa.ArrowException as error:
        raise DataError(f"the header cannot be read: {_first_line(error)}", file=shown) from error
    twice = {name for name in first.column_names if first.column_names.count(name) > 1}
    if twice:
        raise DataError(f"the header names a column twice: {', '.join(sorted(twice))}", file=shown)
    return first.column_names


def _csv_error(error: Exception, path: Path, shown: str) -> DataError:
    text = _first_line(error)
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", text)
    if found:
        row, expected, got = (int(number) for number in found.groups())
        return DataError(
            f"expected {expected} fields as in the header, found {got}",
            file=shown,
            row=row - 1,
            expected='a comma or line break inside a field needs "..." around the field',
        )
    if "invalid UTF8" in text:
        check_utf8(path, shown)
    return DataError(f"no readable CSV: {text}", file=shown, expected="a header line and one row per record")


def dataset(source: "Dataset", shown: str) -> Iterator[Block]:
    """Blocks of a `datasets.Dataset`, read from its memory-mapped table in order."""
    done = 0
    for table in source.with_format("arrow").iter(batch_size=ROWS_PER_BLOCK):
        yield Block(shown, range(done + 1, done + 1 + len(table)), plain_table(table))
        done += len(table)


def saved_dataset(path: Path, shown: str) -> "Dataset":
    """The data set that `datasets` saved in `path`; of several splits the one called train."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"no readable `datasets` directory: {_first_line(error)}", file=shown) from error
    return _one_split(found, shown)


def hub_dataset(name: str) -> "Dataset":
    """The data set ``owner/name[:config][#split]`` of the hub (split "train" unless given); errors are translated."""
    import datasets

    path, _, split = name.partition("#")
    path, _, config = path.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split=split or "train")  # pyright: ignore[reportReturnType]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"no such file, and the hub gives no data set of this name: {_first_line(error)}",
            file=name,
            expected="an existing path, or owner/name[:config][#split] of a data set on huggingface.co",
        ) from error


def _one_split(found: object, shown: str) -> "Dataset":
    import datasets

    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            splits = ", ".join(str(name) for name in found)
            raise DataError(f"several splits: {splits}", file=shown, expected=f"{shown}/SPLIT, the folder of one split")
        return found["train"]
    assert isinstance(found, datasets.Dataset)
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
