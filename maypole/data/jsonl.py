"""JSON files: one object per line, or one array of objects; both are read piece by piece.

A row is counted by its line in JSON lines (so an editor finds it) and by its place in an array. Lines end with \\n or
\\r\\n only: U+2028 and its like are characters of a text. Knows nothing about row types.
"""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maypole.core.errors import DataError
from maypole.data.blocks import BYTES_PER_BLOCK, ROWS_PER_BLOCK, Block, block_of_objects
from maypole.data.files import decoded, opened
from maypole.data.kinds import describe

LONGEST_LINE = 256 << 20
_PIECE = 1 << 20
_SPACE = " \t\r\n"


def json_lines(path: Path, shown: str) -> Iterator[Block]:
    """Blocks of a JSONL file; blank lines are no rows. Raises DataError with line, excerpt and hint."""
    with opened(path, shown) as file:
        lines = _lines(file, shown)
        yield from _blocks(shown, ((n, _value(line, shown, n, offset), len(line)) for n, offset, line in lines))


def raw_lines(path: Path, shown: str) -> Iterator[bytes]:
    """The rows of a JSONL file as they stand there, without their line ends: one for each row that is read."""
    with opened(path, shown) as file:
        for _, _, line in _lines(file, shown):
            yield line


def objects(path: Path, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file one by one, each with its line number; nothing is asked of what they hold."""
    with opened(path, shown) as file:
        for number, offset, line in _lines(file, shown):
            yield number, _object(_value(line, shown, number, offset), shown, number)


def json_array(path: Path, shown: str) -> Iterator[Block]:
    """Blocks of a .json file: an array of objects, or JSON lines under this suffix."""
    with opened(path, shown) as file:
        first = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first != b"[":
        yield from json_lines(path, shown)
        return
    with opened(path, shown) as file:
        items = enumerate(_items(file, shown), start=1)
        yield from _blocks(shown, ((n, value, length) for n, (value, length) in items))


def _blocks(shown: str, values: Iterator[tuple[int, Any, int]]) -> Iterator[Block]:
    """Blocks of (row number, value, length) triples; raises DataError where a value is no object."""
    rows: list[int] = []
    found: list[dict[str, Any]] = []
    size = 0
    for number, value, length in values:
        rows.append(number)
        found.append(_object(value, shown, number))
        size += length
        if len(rows) == ROWS_PER_BLOCK or size > BYTES_PER_BLOCK:
            yield block_of_objects(shown, rows, found)
            rows, found, size = [], [], 0
    if rows:
        yield block_of_objects(shown, rows, found)


def _object(value: Any, shown: str, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        what, expected = f"expected an object, found {describe(value)}", '{"text": "..."} on each row'
        raise DataError(what, file=shown, row=number, expected=expected)
    return value


def _lines(file: io.BufferedReader, shown: str) -> Iterator[tuple[int, int, bytes]]:
    """Line number from 1, byte offset and bytes of every line that is not blank."""
    offset = number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(f"the line is longer than {LONGEST_LINE >> 20} MiB", file=shown, row=number)
        start, offset = offset, offset + len(line)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line, start = line.removeprefix(codecs.BOM_UTF8), start + len(codecs.BOM_UTF8)
        if (line := line.rstrip(b"\r\n")) and not line.isspace():
            yield number, start, line


def _value(line: bytes, shown: str, number: int, offset: int) -> Any:
    text = decoded(line, shown, row=number, offset=offset)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(text, error, shown, number) from error
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply", file=shown, row=number) from error


def _malformed(text: str, error: json.JSONDecodeError, shown: str, number: int) -> DataError:
    start = max(0, error.pos - 30)
    excerpt = ("..." if start else "") + text[start : error.pos + 30] + ("..." if error.pos + 30 < len(text) else "")
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        hint = "the row ends too early; was the file cut off, or does a text hold a raw line break?"
    elif text.startswith("{'") or error.msg.startswith("Expecting property name"):
        hint = "keys and strings stand in double quotes, and no comma before }"
    elif error.msg == "Extra data":
        hint = "one object per line"
    else:
        hint = "one JSON object per line"
    return DataError(
        f"no valid JSON: {error.msg} at character {error.pos + 1}: {excerpt!r}", file=shown, row=number, expected=hint
    )


def _items(file: io.BufferedReader, shown: str) -> Iterator[tuple[Any, int]]:
    """Items of the array in `file` with their length in characters, held in memory one piece at a time."""
    decoder, number, text = json.JSONDecoder(), 0, _Pieces(file, shown)
    mark = text.take()  # the opening bracket
    if text.peek() == "]":
        mark = text.take()
    while mark != "]":
        number += 1
        text.peek()
        yield text.value(decoder, number)
        mark = text.take()
        if mark not in (",", "]"):
            what = f"expected a comma or ] after this item, found {mark!r}" if mark else "the array has no end"
            raise DataError(what, file=shown, row=number, expected="" if mark else "was the file cut off?")
    if rest := text.peek():
        raise DataError(f"{rest!r} follows the end of the array", file=shown, row=number, expected="one array per file")


class _Pieces:
    """A text that is read as far as it is needed: `buffer` holds what was read and not yet used."""

    def __init__(self, file: io.BufferedReader, shown: str) -> None:
        self._file, self._shown = file, shown
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._read, self.buffer, self.ended = 0, "", False

    def more(self, size: int = _PIECE) -> None:
        data = self._file.read(size)
        try:
            self.buffer += self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            what = f"not UTF-8: byte 0x{error.object[error.start]:02x} near offset {self._read + error.start}"
            raise DataError(what, file=self._shown, expected="UTF-8 text") from error
        self._read, self.ended = self._read + len(data), not data

    def peek(self) -> str:
        """The next character that is no white space, now at the front of the buffer; "" at the end of the file."""
        self.buffer = self.buffer.lstrip(_SPACE)
        while not self.buffer and not self.ended:
            self.more()
            self.buffer = self.buffer.lstrip(_SPACE)
        return self.buffer[:1]

    def take(self) -> str:
        mark = self.peek()
        self.buffer = self.buffer[1:]
        return mark

    def value(self, decoder: json.JSONDecoder, number: int) -> tuple[Any, int]:
        """The JSON value at the front of the buffer, which grows until the value fits or the file ends."""
        while True:
            try:
                value, end = decoder.raw_decode(self.buffer)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 16
                if self.ended or not unfinished or len(self.buffer) > LONGEST_LINE:
                    raise _malformed(self.buffer[: error.pos + 200], error, self._shown, number) from error
                self.more(max(_PIECE, len(self.buffer)))  # doubling: a long value is not scanned over and over
            except RecursionError as error:
                raise DataError("the JSON is nested too deeply", file=self._shown, row=number) from error
            else:
                self.buffer = self.buffer[end:]
                return value, end
