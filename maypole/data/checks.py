"""A block against its row type: columns renamed, text of CSV made numbers where asked, every value checked.

Whole columns are checked at once; only a column that is not surely fine is walked, to name its first wrong row. Knows
nothing about where blocks come from.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from maypole.core.errors import DataError
from maypole.data import kinds
from maypole.data.blocks import Block
from maypole.data.rows import RowType, no_rule

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def renamed(block: Block, columns: Mapping[str, str]) -> Block:
    """`block` with our names (keys) instead of the source's (values); a column that has our name already gives way."""
    found = block.table.column_names
    for ours, theirs in columns.items():
        if theirs not in found:
            raise DataError(
                f'no column "{theirs}" to take as "{ours}"',
                file=block.file,
                expected=f"one of the columns found: {', '.join(found) or 'none'}",
            )
    taken = {theirs: ours for ours, theirs in columns.items()}
    keep = [name for name in found if name in taken or name not in columns]
    table = block.table.select(keep)
    return block.with_table(table.rename_columns([taken.get(name, name) for name in keep]))


def checked(block: Block, row_type: RowType) -> Block:
    """`block` if all its rows are of `row_type`; raises DataError at the first row that is not."""
    if block.textual:
        block = _from_text(block, row_type)
    wrong = sorted(_wrong_columns(block, row_type), key=lambda found: found[0])
    if wrong:
        index, field, problem = wrong[0]
        flat = block.textual and "list" in problem
        hint = "a CSV holds flat rows only; use JSONL or Parquet for lists and messages" if flat else ""
        raise block.error(index, problem, field=field, expected=hint)
    if row_type.rule is not no_rule:
        names = [n for n in (*row_type.columns, *row_type.optional) if n in block.table.column_names]
        for index, row in enumerate(block.table.select(names).to_pylist()):
            if found := row_type.rule(row):
                raise block.error(index, found[1], field=found[0])
    return block


def _wrong_columns(block: Block, row_type: RowType) -> Iterator[tuple[int, str, str]]:
    """First wrong row, field and problem of each column that has one."""
    for name, says in {**row_type.columns, **row_type.optional}.items():
        required = name in row_type.columns
        if name not in block.table.column_names:
            continue
        column = block.table.column(name)
        kind = kinds.KINDS[says]
        if all(kind.sure(chunk if required else chunk.drop_null()) for chunk in column.chunks):
            continue
        for index, value in enumerate(column.to_pylist()):
            if (required or value is not None) and (problem := kind.problem(value)):
                yield index, name, problem
                break


def _from_text(block: Block, row_type: RowType) -> Block:
    """Strings of number and true/false columns as such; an empty field is null."""
    table = block.table
    for name, says in {**row_type.columns, **row_type.optional}.items():
        if name in table.column_names and says in (kinds.NUMBER.says, kinds.BOOL.says):
            parse = _number if says == kinds.NUMBER.says else _bool
            values = [parse(block, i, name, text) for i, text in enumerate(table.column(name).to_pylist())]
            kind = pa.float64() if parse is _number else pa.bool_()
            table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    return block.with_table(table)


def _number(block: Block, index: int, name: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise block.error(index, f"expected a number, found {text[:40]!r}", field=name) from error


def _bool(block: Block, index: int, name: str, text: str) -> bool | None:
    if not text.strip():
        return None
    if (value := _BOOLS.get(text.strip().lower())) is None:
        raise block.error(index, f"expected true or false, found {text[:40]!r}", field=name)
    return value
