"""The one schema of a stream of blocks: it may grow while rows come, it may never contradict itself.

Growing means: a new column (null in earlier rows), a column that was null so far, integers that become floats, and new
keys inside objects. Everything else is an error that names row and field. Knows nothing about files or row types.
"""

import pyarrow as pa

from maypole.core.errors import DataError
from maypole.data.blocks import Block

_PLAIN = {
    pa.types.is_large_string: pa.string(),
    pa.types.is_string_view: pa.string(),
    pa.types.is_large_binary: pa.binary(),
    pa.types.is_binary_view: pa.binary(),
}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without the encodings that files choose: no dictionaries, views, large or fixed-size variants."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return next((plain for is_kind, plain in _PLAIN.items() if is_kind(kind)), kind)


def plain_table(table: pa.Table) -> pa.Table:
    """`table` with plain types and without the metadata of whoever wrote it."""
    schema = pa.schema([(field.name, plain_type(field.type)) for field in table.schema])
    return table.replace_schema_metadata(None).cast(schema)


def says(kind: pa.DataType) -> str:
    """An Arrow type in a user's words."""
    if pa.types.is_string(kind):
        return "a string"
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "a number"
    if pa.types.is_struct(kind):
        return f"an object {{{', '.join(field.name for field in kind)}}}"
    if pa.types.is_list(kind):
        return f"a list of {says(kind.value_type).removeprefix('a ').removeprefix('an ')}s"
    return "null" if pa.types.is_null(kind) else str(kind)


def joined(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both without losing any; None if there is none."""
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _joined_fields(a, b)
    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = joined(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if _is_number(a) and _is_number(b):
        floats = pa.types.is_floating(a) or pa.types.is_floating(b)
        return pa.float64() if floats else pa.int64()
    return None


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not kind.equals(pa.uint64()))


def _joined_fields(a: pa.StructType, b: pa.StructType) -> pa.DataType | None:
    fields = {field.name: field.type for field in a}
    for field in b:
        kind = joined(fields[field.name], field.type) if field.name in fields else field.type
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.struct(list(fields.items()))


def grown(schema: pa.Schema, block: Block) -> pa.Schema:
    """`schema` made wide enough for `block`; raises DataError at the first row that contradicts it."""
    fields = {field.name: field.type for field in schema}
    for field in block.table.schema:
        before = fields.get(field.name, pa.null())
        kind = joined(before, field.type)
        if kind is None:
            raise _contradiction(block, field.name, before, field.type)
        fields[field.name] = kind
    return pa.schema(list(fields.items()))


def _contradiction(block: Block, name: str, before: pa.DataType, here: pa.DataType) -> DataError:
    valid = block.table.column(name).is_valid().to_pylist()
    return block.error(
        valid.index(True) if True in valid else 0,
        f"the column changes its type: {says(before)} in the rows before, {says(here)} here",
        field=name,
        expected="one type for the whole column, in all files",
    )


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns and types of `schema`, which `grown` has made wide enough for it.

    Raises DataError where a column holds fractions beside integers that no float can hold.
    """
    present = set(table.column_names)
    columns = []
    for field in schema:
        try:
            column = table.column(field.name).cast(field.type) if field.name in present else None
        except pa.ArrowInvalid as error:
            what = f"the column holds fractions and integers too large to stand beside them: {error}"
            raise DataError(what, field=field.name, expected="write the large integers as strings") from error
        columns.append(pa.nulls(len(table), field.type) if column is None else column)
    return pa.table(columns, schema=schema)
