"""A block: some consecutive rows of one file as a table, with the numbers that a user would count them by.

Also the exact step from Python values to a typed column: the first value that breaks the column's type is named by its
row. Knows nothing about row types and about how files are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from maypole.core.errors import DataError
from maypole.data.kinds import describe

ROWS_PER_BLOCK = 1000
BYTES_PER_BLOCK = 8 << 20  # a block of long documents closes earlier, so that memory does not follow their length

_CONVERSION = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError)


@dataclass(frozen=True)
class Block:
    """Rows of `file` as `table`; ``rows[i]`` is what a user calls row i of it (counted from 1, a line in JSONL).

    `textual` says that the file knows strings only (CSV), so a number column may still be written as text.
    """

    file: str
    rows: Sequence[int]
    table: pa.Table
    textual: bool = False

    def error(self, index: int, what: str, *, field: str | None = None, expected: str = "") -> DataError:
        """A DataError at row `index` (from 0) of this block."""
        return DataError(what, file=self.file, row=self.rows[index], field=field, expected=expected)

    def with_table(self, table: pa.Table) -> "Block":
        return replace(self, table=table)


def block_of_objects(file: str, rows: Sequence[int], objects: Sequence[Mapping[str, Any]]) -> Block:
    """A block from one mapping per row; a key that a row lacks is null there; DataError at the first odd value."""
    names = list(dict.fromkeys(name for row in objects for name in row))
    columns = {name: typed_column(file, rows, name, [row.get(name) for row in objects]) for name in names}
    return Block(file, rows, pa.table(columns))


def typed_column(file: str, rows: Sequence[int], name: str, values: Sequence[Any]) -> pa.Array:
    """`values` as one Arrow column. Integers beside floats become floats; any other mix of types is an error."""
    try:
        return pa.array(values)
    except _CONVERSION as error:
        index = _first_failure(values)
        raise DataError(
            _why(values, index, error), file=file, row=rows[index], field=name, expected="one type for the whole column"
        ) from error


def _first_failure(values: Sequence[Any]) -> int:
    """Index of the value with which ``pa.array(values[: index + 1])`` fails first, by bisection."""
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            pa.array(values[:middle])
            good = middle
        except _CONVERSION:
            bad = middle
    return bad - 1


def _why(values: Sequence[Any], index: int, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "the text holds half of a surrogate pair, which is no character"
    before = next((describe(value) for value in values[:index] if value is not None), "null")
    here = describe(values[index])
    if before != here:
        return f"the column changes its type: {before} in the rows before, {here} here"
    return f"the value does not have the type of the rows before: {error}"
