"""Files on disk: which suffixes can be read, how a folder is walked, how bytes become text.

Compression (.gz, .zst) is undone on the way; a stream that ends too early is an error, never a shorter file. Knows
nothing about what stands in the files.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from maypole.core.errors import DataError
from maypole.core.manifest import FILE as MANIFEST

JSON_LINES = (".jsonl", ".ndjson")
JSON = (".json",)
PARQUET = (".parquet",)
CSV = (".csv", ".tsv")
TEXT = (".txt", ".text", ".md", ".markdown", ".rst")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}

ACCEPTED = (
    f"{', '.join(JSON_LINES + JSON + CSV + TEXT)} (each also with .gz or .zst), .parquet, "
    "or a directory made by datasets' save_to_disk"
)

_log = logging.getLogger(__name__)


def suffix(path: Path) -> str:
    """The suffix that says what stands in the file: ".jsonl" for ``a.jsonl.zst``, "" where none is known."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    found = name.suffix.lower()
    if found in PARQUET:
        return found if name == path else ""
    return found if found in JSON_LINES + JSON + CSV + TEXT else ""


def data_folder(folder: Path) -> Path:
    """Where the rows in `folder` lie: a result of maypole has them in ``data``, apart from how it was made."""
    inner = folder / "data"
    return inner if (folder / MANIFEST).is_file() and inner.is_dir() else folder


def data_files(folder: Path) -> list[Path]:
    """Every readable file below `folder`, sorted; hidden ones are skipped. Raises DataError if there is none."""
    folder = data_folder(folder)
    found: list[Path] = []
    others = 0
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(directory, name)
            if not name.startswith(".") and suffix(path):
                found.append(path)
            else:
                others += 1
    if not found:
        what = f"none of the {others} files in this folder can be read" if others else "the folder is empty"
        raise DataError(what, file=folder, expected=f"files ending in {ACCEPTED}")
    if others:
        _log.info("%s: %d files with other suffixes were left out", folder, others)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


@contextmanager
def opened(path: Path, shown: str) -> Iterator[io.BufferedReader]:
    """The bytes of `path`, decompressed by its suffix, with the operating system's complaints translated."""
    compression = COMPRESSED.get(path.suffix.lower())
    try:
        if compression is None:
            with path.open("rb") as file:
                yield file
        elif path.stat().st_size == 0:
            yield io.BufferedReader(io.BytesIO())  # pyright: ignore[reportArgumentType]
        else:
            with pa.input_stream(str(path), compression=compression) as raw:
                yield io.BufferedReader(raw, 1 << 20)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        if compression and error.errno is None:
            raise DataError(
                f"the {compression} data is damaged or cut off: {error}", file=shown, expected="a complete file"
            ) from error
        raise DataError(f"cannot be read: {error.strerror or error}", file=shown) from error


def decoded(data: bytes, file: str, *, row: int | None = None, offset: int = 0) -> str:
    """`data` as text; `offset` is where it starts in the file. A DataError names the first byte that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            what = "the file is UTF-16, not UTF-8"
        elif b"\0" in data:
            what = f"this is no text: byte {offset + data.index(0)} is zero"
        else:
            what = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        expected = "UTF-8 text; convert it with: iconv -t UTF-8"
        raise DataError(what, file=file, row=row, expected=expected) from error


def check_utf8(path: Path, shown: str) -> None:
    """Raise DataError naming the line and the first byte of `path` that is not UTF-8."""
    with opened(path, shown) as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            decoded(line, shown, row=number, offset=offset)
            offset += len(line)
