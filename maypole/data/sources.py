"""A source is what a user names as data: a file, a folder, a `datasets` directory, a hub id, or a Dataset in memory.

Each becomes one `Opened`: an identity (what stands in it) and a stream of blocks that can be started again. Knows
nothing about row types.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maypole.core.errors import DataError
from maypole.core.identity import digest, identity
from maypole.data import files, jsonl, tables
from maypole.data.blocks import BYTES_PER_BLOCK, ROWS_PER_BLOCK, Block, block_of_objects

if TYPE_CHECKING:
    from datasets import Dataset

    Source = str | os.PathLike[str] | Dataset

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(#[\w.-]+)?")


@dataclass(frozen=True)
class Opened:
    """A source that exists: `name` as the user wrote it, `identity`, and `blocks()` in the order of its rows."""

    name: str
    identity: str
    blocks: Callable[[], Iterator[Block]]


def open_source(source: "Source", *, documents: bool) -> Opened:
    """Find `source`; raises DataError if it is missing or nothing in it can be read.

    In a folder that holds data files, text and Markdown files are read too only where rows may be `documents`.
    """
    if not isinstance(source, str | os.PathLike):
        return _dataset(source, "the data set in memory")
    name = os.fspath(source)
    path = Path(name)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _dataset(tables.saved_dataset(path, name), name, known_as=_identity(path, name))
        return _folder(path, name, documents=documents)
    if path.exists():
        return _file(path, name)
    if isinstance(source, str) and _is_hub_id(name):
        return _dataset(tables.hub_dataset(name), name)
    raise _missing(path, name)


def commits(options: object) -> dict[str, object]:
    """What the hub ids among `options`' data name now, as inputs of a result: branches move on."""
    found: dict[str, object] = {}
    for field in ("data", "eval_data"):
        names = [name for name in getattr(options, field, ()) if _is_hub_id(name)]
        if names:
            found[f"{field}_commit"] = [open_source(name, documents=True).identity for name in names]
    return found


def _is_hub_id(name: str) -> bool:
    path = Path(name)
    return bool(_HUB_ID.fullmatch(name)) and not (path.exists() or path.parent.exists() or files.suffix(path))


def many(sources: "Source | Sequence[Source]") -> "list[Source]":
    """One source or several as a list; raises DataError for none."""
    found = list(sources) if isinstance(sources, list | tuple) else [sources]
    if not found:
        raise DataError("no source of data was given", expected=f"files ending in {files.ACCEPTED}, or a hub id")
    return found  # pyright: ignore[reportReturnType]


def _file(path: Path, name: str) -> Opened:
    kind = files.suffix(path)
    if not kind:
        ending = "".join(path.suffixes)
        what = f"files ending in {ending!r} cannot be read" if ending else "the file has no suffix"
        raise DataError(what, file=name, expected=f"a file ending in {files.ACCEPTED}")
    content = _identity(path, name)
    if kind in files.TEXT:  # its name becomes a column
        return Opened(name, digest("documents", path.name, content), partial(_documents, name, [(path.name, path)]))
    known_as = digest("file", kind, content)  # the same bytes are other rows in a CSV than in a TSV
    return Opened(name, known_as, partial(_rows, path, name))


def _folder(path: Path, name: str, *, documents: bool) -> Opened:
    found = [(file.relative_to(path).as_posix(), file) for file in files.data_files(path)]
    texts = [(relative, file) for relative, file in found if files.suffix(file) in files.TEXT]
    data = [(relative, file) for relative, file in found if files.suffix(file) not in files.TEXT]
    if data and not documents:
        texts = []

    def blocks() -> Iterator[Block]:
        for _, file in data:
            yield from _rows(file, str(file))
        yield from _documents(name, texts)

    parts = [part for relative, file in data + texts for part in (relative, _identity(file, str(file)))]
    return Opened(name, digest("folder", *parts), blocks)


def _dataset(source: "Dataset", name: str, known_as: str | None = None) -> Opened:
    known_as = known_as or identity(source)
    if known_as is None or not hasattr(source, "with_format"):
        expected = "a path, a hub id, or a datasets.Dataset (datasets.Dataset.from_list makes one of a list)"
        raise DataError(f"a {type(source).__name__} is no source of rows", expected=expected)
    return Opened(name, known_as, partial(tables.dataset, source, name))


def _rows(path: Path, shown: str) -> Iterator[Block]:
    kind = files.suffix(path)
    if kind in files.PARQUET:
        return tables.parquet(path, shown)
    if kind in files.CSV:
        return tables.csv(path, shown)
    return jsonl.json_array(path, shown) if kind in files.JSON else jsonl.json_lines(path, shown)


def _documents(shown: str, paths: Sequence[tuple[str, Path]]) -> Iterator[Block]:
    """Blocks of {text, path}, one row per file, the text exactly as it stands there (but for a byte order mark)."""
    rows: list[int] = []
    documents: list[dict[str, str]] = []
    size = 0
    for number, (relative, path) in enumerate(paths, start=1):
        with files.opened(path, str(path)) as file:
            text = files.decoded(file.read(), str(path)).removeprefix("\ufeff")
        if "\0" in text:
            where = f"byte {len(text[: text.index(chr(0))].encode())} is zero"
            raise DataError(f"this is no text: {where}", file=path, expected="a text file in UTF-8")
        rows.append(number)
        documents.append({"text": text, "path": relative})
        size += len(text)
        if len(rows) == ROWS_PER_BLOCK or size > BYTES_PER_BLOCK:
            yield block_of_objects(shown, rows, documents)
            rows, documents, size = [], [], 0
    if rows:
        yield block_of_objects(shown, rows, documents)


def _identity(path: Path, name: str) -> str:
    try:
        found = identity(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=name) from error
    if found is None:
        raise DataError("the result in this folder is not finished", file=name, expected="a finished one")
    return found


def _missing(path: Path, name: str) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError("no such file or folder", file=name, expected=f"{folder} does not exist either")
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    hint = f"did you mean {folder / near[0]}?" if near else "a path, or owner/name[:config][#split] of a hub data set"
    return DataError("no such file or folder", file=name, expected=hint)
