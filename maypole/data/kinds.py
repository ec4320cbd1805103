"""What a column may hold: one exact check in Python, and one on whole Arrow columns that is quick and never too kind.

A column is first asked whether it is surely fine; only when it is not are its values looked at one by one, so that
the message names the first wrong row. Knows nothing about files, row types or models.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees


def describe(value: Any) -> str:
    """What a value is, in a user's words: "null", "a number", "an empty list" ..."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number" if math.isfinite(value) else str(value)
        case str():
            return "a string"
        case bytes():
            return "bytes"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Kind:
    """One kind of column: `problem(value)` is None or says what is wrong, `sure(column)` is True only if all fit."""

    says: str
    problem: Callable[[Any], str | None]
    sure: Callable[[pa.Array], bool]


def _expected(says: str, value: Any) -> str:
    return f"expected {says}, found {describe(value)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(column: pa.Array) -> bool:
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return numeric and pc.all(pc.is_finite(column)).as_py() is not False


def _strings(column: pa.Array) -> bool:
    return pa.types.is_string(column.type)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tokens(column: pa.Array) -> bool:
    return pa.types.is_integer(column.type) and pc.all(pc.greater_equal(column, 0)).as_py() is not False


def _no_empty_list(column: pa.Array) -> bool:
    return (
        column.null_count == 0
        and pa.types.is_list(column.type)
        and pc.all(pc.greater(pc.list_value_length(column), 0)).as_py() is not False
    )


def _plain(says: str, fits: Callable[[Any], bool], all_fit: Callable[[pa.Array], bool]) -> Kind:
    return Kind(
        says,
        lambda value: None if fits(value) else _expected(says, value),
        lambda column: column.null_count == 0 and all_fit(column),
    )


def _list_of(says: str, fits: Callable[[Any], bool], all_fit: Callable[[pa.Array], bool]) -> Kind:
    def problem(value: Any) -> str | None:
        if not isinstance(value, list) or not value:
            return _expected(says, value)
        wrong = next((i for i, item in enumerate(value) if not fits(item)), None)
        return None if wrong is None else f"{_expected(says, value)} whose item {wrong + 1} is {describe(value[wrong])}"

    def sure(column: pa.Array) -> bool:
        return _no_empty_list(column) and column.flatten().null_count == 0 and all_fit(column.flatten())

    return Kind(says, problem, sure)


def _turns(says: str, speaker: str, words: str) -> Kind:
    """Lists of {speaker: str, words: str or parts}; words may be null only beside tool calls."""

    def problem(value: Any) -> str | None:
        if not isinstance(value, list) or not value:
            return _expected(says, value)
        for index, turn in enumerate(value, start=1):
            if not isinstance(turn, Mapping):
                return f"expected {says}; item {index} is {describe(turn)}"
            if not isinstance(turn.get(speaker), str):
                return f'expected {says}; in message {index} "{speaker}" is {describe(turn.get(speaker))}'
            content = turn.get(words)
            if not isinstance(content, str | list) and not (content is None and turn.get("tool_calls")):
                return f'expected {says}; in message {index} "{words}" is {describe(content)}'
        return None

    def sure(column: pa.Array) -> bool:
        if not _no_empty_list(column) or not pa.types.is_struct(column.type.value_type):
            return False
        turns = column.flatten()
        if turns.null_count or not {speaker, words} <= {field.name for field in turns.type}:
            return False
        strings = (pc.struct_field(turns, name) for name in (speaker, words))
        return all(_strings(values) and values.null_count == 0 for values in strings)

    return Kind(says, problem, sure)


def _either(says: str, *kinds: Kind) -> Kind:
    def problem(value: Any) -> str | None:
        found = [kind.problem(value) for kind in kinds]
        if None in found:
            return None
        return found[-1] if isinstance(value, list) and value else _expected(says, value)

    return Kind(says, problem, lambda column: any(kind.sure(column) for kind in kinds))


def _each(says: str, kind: Kind) -> Kind:
    def problem(value: Any) -> str | None:
        if not isinstance(value, list) or not value:
            return _expected(says, value)
        found = ((i, kind.problem(item)) for i, item in enumerate(value, start=1))
        return next((f"item {i}: {wrong}" for i, wrong in found if wrong), None)

    def sure(column: pa.Array) -> bool:
        return _no_empty_list(column) and kind.sure(column.flatten())

    return Kind(says, problem, sure)


STRING = _plain("a string", lambda v: isinstance(v, str), _strings)
NUMBER = _plain("a number", _is_number, _numbers)
BOOL = _plain("true or false", lambda v: isinstance(v, bool), lambda c: pa.types.is_boolean(c.type))
OBJECT = _plain("an object", lambda v: isinstance(v, Mapping), lambda c: pa.types.is_struct(c.type))
STRINGS = _list_of("a list of strings", lambda v: isinstance(v, str), _strings)
NUMBERS = _list_of("a list of numbers", _is_number, _numbers)
TOKENS = _list_of("a list of token ids", _is_token, _tokens)
ANSWERS_TOKENS = _each("a list of lists of token ids", TOKENS)
MATRIX = _each("a list of lists of numbers", NUMBERS)
MESSAGES = _turns('a list of messages {"role", "content"}', "role", "content")
SHAREGPT = _turns('a list of turns {"from", "value"}', "from", "value")
TEXT_OR_MESSAGES = _either('a string or a list of messages {"role", "content"}', STRING, MESSAGES)
COMPLETIONS = _each("a list of completions (strings or lists of messages)", TEXT_OR_MESSAGES)
PROBABILITIES = _either("a list of numbers, one per completion, or a square matrix", NUMBERS, MATRIX)
TURNS = _either('a list of messages {"role", "content"} or turns {"from", "value"}', MESSAGES, SHAREGPT)
IMAGE = Kind(
    "an image (a path, bytes, or {bytes, path})",
    lambda v: (
        None
        if isinstance(v, str | bytes) or (isinstance(v, Mapping) and (v.get("bytes") or v.get("path")))
        else _expected("an image (a path, bytes, or {bytes, path})", v)
    ),
    lambda column: column.null_count == 0 and (pa.types.is_string(column.type) or pa.types.is_binary(column.type)),
)

KINDS: Mapping[str, Kind] = {
    kind.says: kind
    for kind in (
        STRING, NUMBER, BOOL, OBJECT, STRINGS, NUMBERS, TOKENS, ANSWERS_TOKENS, MATRIX, MESSAGES, TEXT_OR_MESSAGES,
        COMPLETIONS, PROBABILITIES, TURNS, IMAGE,
    )
}  # fmt: skip
