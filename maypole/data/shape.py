"""What a known shape of rows is: the columns that tell it, and what becomes of its rows.

Knows nothing about any shape in particular, nor about files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from maypole.data.blocks import Block
from maypole.data.rows import RowType

Row = Mapping[str, Any]


class Lossy(Exception):
    """A row that does not fit the shape that its columns promise: (field, what is wrong, what would be right)."""


@dataclass(frozen=True)
class Shape:
    """`convert` makes the columns of `gives` from one row; the columns `uses` are then dropped.

    `when` looks at the first row, for shapes that their columns alone do not tell. With `together` rows that follow
    each other and are equal in that column are converted as one, and `convert` is given them as a list. What it gives
    is a row, or a list of any number of rows: none where an answer is as good as the other.
    """

    name: str
    needs: frozenset[str]
    uses: tuple[str, ...]
    gives: RowType
    convert: Callable[[Any], Row | list[Row]]
    when: Callable[[Row], bool] | None = None
    together: str = ""

    def fits(self, block: Block, row_type: RowType) -> bool:
        """Whether `block` has this shape. Columns that fit `row_type` are taken as they are, but by shapes of these."""
        found, wanted = set(block.table.column_names), set(row_type.columns)
        if self.gives.name != row_type.name or not self.needs <= found:
            return False
        if wanted <= found and not wanted <= self.needs:
            return False
        if self.when is None:
            return True
        first = block.table.select([c for c in self.uses if c in found]).slice(0, 1).to_pylist()
        return bool(first) and self.when(first[0])

    def units(self, rows: list[Row]) -> Iterator[tuple[int, Any]]:
        """What is converted at a time, each with the index of its first row."""
        if not self.together:
            yield from enumerate(rows)
            return
        begin = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or rows[end][self.together] != rows[begin][self.together]:
                yield begin, rows[begin:end]
                begin = end


def whole_units(blocks: Iterable[Block], shape_of: Callable[[Block], Shape | None]) -> Iterator[Block]:
    """The rows of `blocks` with no border between rows that are converted together."""
    held: Block | None = None
    for block in blocks:
        if held is not None:
            table = pa.concat_tables([held.table, block.table], promote_options="permissive")
            block = replace(block, rows=[*held.rows, *block.rows], table=table)
            held = None
        shape = shape_of(block)
        if shape is not None and shape.together:
            values = block.table.column(shape.together).to_pylist()
            begin = next((i for i in reversed(range(len(values) - 1)) if values[i] != values[-1]), -1) + 1
            held = replace(block, rows=block.rows[begin:], table=block.table.slice(begin))
            block = replace(block, rows=block.rows[:begin], table=block.table.slice(0, begin))
        if len(block.table):
            yield block
    if held is not None:
        yield held


def string(row: Row, name: str, *, default: str | None = None) -> str:
    """The text in a column; Lossy where there is none."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise Lossy(name, "expected a string, found null" if value is None else "expected a string", "")
    return value


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}
