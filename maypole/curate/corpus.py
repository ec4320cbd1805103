"""A corpus as its files: which there are, their documents batch after batch, and a file written anew with fewer rows.

Parquet, and JSON lines plain, .gz or .zst. What is kept stays as it stood: every column and type of a Parquet file,
every byte of a line. Knows nothing about models, nor why a row is kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maypole.core.errors import ConfigError, DataError
from maypole.data import files, jsonl
from maypole.data.kinds import describe

ACCEPTED = ".parquet, .jsonl or .ndjson (these also with .gz or .zst)"
EMPTY = "empty"
NOT_UNICODE = "not valid Unicode"
DOCUMENTS_A_BATCH = 256
CHARACTERS_A_BATCH = 1 << 20
_ROWS_READ = 1024
_BYTES_A_GROUP = 32 << 20  # of a Parquet file that is written


@dataclass(frozen=True, slots=True)
class Columns:
    """What columns are called: `text`, and if given `id` and `domain`; a dot leads into objects ("meta.source").

    Where `id` is None the column "id" is taken if there is one, else a document is called by file and row; where
    `domain` is None, the column "domain" if there is one.
    """

    text: str = "text"
    id: str | None = None
    domain: str | None = None

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> "Columns":
        """From ``["text=body", "domain=meta.source"]``."""
        found: dict[str, str] = {}
        for pair in pairs:
            name, _, column = pair.partition("=")
            if name not in cls.__slots__ or not column:
                raise ConfigError("columns", pair, "text=NAME, id=NAME or domain=NAME")
            found[name] = column
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file; `name` is its path as seen from the folder that was named, `index` its place in the corpus."""

    path: Path
    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files whose columns were looked at; `layouts` counts how many different sets of columns they have, where those
    of a Parquet file differ in their types too."""

    shards: tuple[Shard, ...]
    columns: Columns
    layouts: int


class Document(NamedTuple):
    """A row of a shard (counted from 0)."""

    row: int
    id: str
    text: str
    domain: str


def open_corpus(sources: Sequence[str | Path], columns: Columns | None = None) -> Corpus:
    """The files of `sources` (files and folders) and their columns.

    DataError where a file is none of the kinds, two have the same name, or a column is missing in one of them: all are
    looked at before any work begins.
    """
    shards: list[Shard] = []
    for source in sources:
        for path, name in _files(Path(source)):
            shards.append(Shard(path, name, len(shards)))
    seen: set[str] = set()
    for shard in shards:
        if shard.name in seen:
            what = f"another file is called {shard.name} too, and what is kept of them would lie in one place"
            raise DataError(what, file=shard.path, expected="the folder that holds both")
        seen.add(shard.name)
    found = {shard: fields for shard in shards if (fields := _fields(shard)) is not None}
    if not found:
        raise DataError("there are no rows in it", file=sources[0], expected="at least one row")
    columns = columns or Columns()
    for shard, fields in found.items():
        for wanted in (columns.text, columns.id, columns.domain):
            if wanted is not None and not _has(fields, wanted):
                what = f'no column "{wanted}"; found {", ".join(fields)}'
                raise DataError(what, file=shard.path, row=1, expected=f"--columns {_likely(columns, wanted, fields)}")
    chosen = {name: name for name in ("id", "domain") if getattr(columns, name) is None and _everywhere(name, found)}
    return Corpus(tuple(shards), replace(columns, **chosen), _layouts(found))


def documents(shard: Shard, columns: Columns) -> Iterator[list[Document]]:
    """All rows in order, some hundred at a time; DataError with file, row and field where one is no document."""
    batch: list[Document] = []
    size = 0
    for row, (number, fields) in enumerate(_rows(shard, columns)):
        text = fields["text"]
        if not isinstance(text, str):
            raise _wrong(shard, number, columns.text, "a string", text)
        name = f"{shard.name}:{row}" if columns.id is None else _word(shard, number, columns.id, fields["id"])
        domain = "" if fields["domain"] is None else _word(shard, number, columns.domain or "", fields["domain"])
        batch.append(Document(row, name, text, domain))
        size += len(text)
        if len(batch) == DOCUMENTS_A_BATCH or size > CHARACTERS_A_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_rows(shard: Shard) -> int:
    """How many rows a shard has; JSON lines are read for it, though not understood."""
    if _is_parquet(shard.path):
        with _readable(shard.path), pq.ParquetFile(shard.path) as file:
            return file.metadata.num_rows
    return sum(1 for _ in jsonl.raw_lines(shard.path, str(shard.path)))


def unusable(text: str) -> str | None:
    """Why no model can read a text: there is nothing in it, or half a surrogate pair, as JSON can write; else None."""
    if not text.strip():
        return EMPTY
    try:
        text.encode()
    except UnicodeEncodeError:
        return NOT_UNICODE
    return None


def rewrite(shard: Shard, path: Path, keep: NDArray[np.bool_]) -> None:
    """Write to `path` the rows of `shard` for which `keep` (rows,) is true, in their order."""
    rows = _rewrite_parquet(shard, path, keep) if _is_parquet(shard.path) else _rewrite_lines(shard, path, keep)
    if rows != len(keep):
        what = f"it has {rows:,} rows, and {len(keep):,} were counted before"
        raise DataError(what, file=shard.path, expected="files that do not change while they are read")


def _files(source: Path) -> list[tuple[Path, str]]:
    """(path, name) of the data files of one source."""
    if source.is_dir():
        found = [path for path in files.data_files(source) if _is_shard(path)]
        if not found:
            raise DataError("none of the files in this folder can be read", file=source, expected=ACCEPTED)
        root = files.data_folder(source)
        return [(path, path.relative_to(root).as_posix()) for path in found]
    if not source.is_file():
        raise DataError("no such file or folder", file=source)
    if not _is_shard(source):
        raise DataError("files of this kind cannot be curated", file=source, expected=ACCEPTED)
    return [(source, source.name)]


def _is_shard(path: Path) -> bool:
    return files.suffix(path) in files.PARQUET + files.JSON_LINES


def _is_parquet(path: Path) -> bool:
    return files.suffix(path) in files.PARQUET


def _fields(shard: Shard) -> Mapping[str, Any] | None:
    """Columns and the fields inside objects by name: the first row of JSON lines, the types of a Parquet file; None for
    a file without rows."""
    if _is_parquet(shard.path):
        with _readable(shard.path), pq.ParquetFile(shard.path) as file:
            return _types(file.schema_arrow) if file.metadata.num_rows else None
    first = next(jsonl.objects(shard.path, str(shard.path)), None)
    return None if first is None else first[1]


def _types(fields: Iterable[pa.Field]) -> dict[str, Any]:
    return {field.name: _types(field.type) if pa.types.is_struct(field.type) else str(field.type) for field in fields}


def _has(fields: Mapping[str, Any], column: str) -> bool:
    """Whether there is such a column, or may be: a first row whose object is null does not tell what others hold."""
    if column in fields:
        return True
    inside: Any = fields
    for name in column.split("."):
        if inside is None:
            return True
        if not isinstance(inside, Mapping) or name not in inside:
            return False
        inside = inside[name]
    return True


def _layouts(found: Mapping[Shard, Mapping[str, Any]]) -> int:
    typed = {repr(sorted(f.items())): frozenset(f) for shard, f in found.items() if _is_parquet(shard.path)}
    plain = {frozenset(f) for shard, f in found.items() if not _is_parquet(shard.path)}
    return len(typed) + len(plain - set(typed.values()))


def _everywhere(name: str, found: Mapping[Shard, Mapping[str, Any]]) -> bool:
    """Whether all files have the column; DataError where only some do."""
    lacking = [shard for shard, fields in found.items() if name not in fields]
    if lacking and len(lacking) < len(found):
        holder = next(shard for shard, fields in found.items() if name in fields)
        what = f'no column "{name}", which {holder.name} has'
        raise DataError(what, file=lacking[0].path, expected=f"the same columns in all files, or --columns {name}=NAME")
    return not lacking


def _likely(columns: Columns, wanted: str, names: Iterable[str]) -> str:
    ours = next(name for name in Columns.__slots__ if getattr(columns, name) == wanted)
    near = ("content", "body", "raw_content", "document") if ours == "text" else ()
    return f"{ours}={next((name for name in near if name in names), 'NAME')}"


def _rows(shard: Shard, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number by which a user counts it, {text, id, domain}) of every row; what has no column is None."""
    wanted = {"text": columns.text, "id": columns.id, "domain": columns.domain}
    if _is_parquet(shard.path):
        yield from _parquet_rows(shard, wanted)
        return
    for number, row in jsonl.objects(shard.path, str(shard.path)):
        yield number, {name: _inside(row, column) for name, column in wanted.items()}


def _parquet_rows(shard: Shard, wanted: Mapping[str, str | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    read = sorted({column for column in wanted.values() if column is not None})
    number = 0
    with _readable(shard.path), pq.ParquetFile(shard.path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_READ, columns=read):
            for row in batch.to_pylist():
                number += 1
                yield number, {name: _inside(row, column) for name, column in wanted.items()}


def _inside(row: Mapping[str, Any], column: str | None) -> Any:
    if column is None or column in row:
        return row.get(column or "")
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _word(shard: Shard, number: int, column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise _wrong(shard, number, column, "a string or a number", value)


def _wrong(shard: Shard, number: int, column: str, expected: str, value: Any) -> DataError:
    return DataError(f"expected {expected}, found {describe(value)}", file=shard.path, row=number, field=column)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = f"no readable Parquet file: {str(error).splitlines()[0]}"
        raise DataError(what, file=path, expected="a complete Parquet file") from error


def _rewrite_parquet(shard: Shard, path: Path, keep: NDArray[np.bool_]) -> int:
    rows = 0
    with (
        _readable(shard.path),
        pq.ParquetFile(shard.path) as file,
        pq.ParquetWriter(path, file.schema_arrow, compression=_compression(file)) as out,
    ):
        waiting: list[pa.RecordBatch] = []
        size = 0
        for batch in file.iter_batches(batch_size=_ROWS_READ):
            mask = keep[rows : rows + len(batch)]
            rows += len(batch)
            if len(mask) < len(batch):
                continue
            waiting.append(batch.filter(pa.array(mask)))
            size += waiting[-1].nbytes
            if size > _BYTES_A_GROUP:
                out.write_table(pa.Table.from_batches(waiting))
                waiting, size = [], 0
        if waiting:
            out.write_table(pa.Table.from_batches(waiting))
    return rows


def _compression(file: pq.ParquetFile) -> str:
    """As the file has it, so that what is left of it is not larger for that."""
    if not file.metadata.num_row_groups:
        return "snappy"
    found = file.metadata.row_group(0).column(0).compression.lower()
    return "none" if found == "uncompressed" else found


def _rewrite_lines(shard: Shard, path: Path, keep: NDArray[np.bool_]) -> int:
    rows = 0
    with pa.output_stream(str(path), compression=files.COMPRESSED.get(shard.path.suffix.lower())) as out:
        for line in jsonl.raw_lines(shard.path, str(shard.path)):
            if rows < len(keep) and keep[rows]:
                out.write(line + b"\n")
            rows += 1
    return rows
