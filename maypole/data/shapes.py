"""Known shapes of rows, recognised by their columns and converted, with a line in the log; never with a loss.

alpaca (instruction, input, output), ShareGPT (conversations of from/value), messages under another name, and
prompt + completion where a chat is asked for. Converted columns are replaced; all others travel along. What would lose
turns (a chat asked for as one completion) is no shape and stays an error. Knows nothing about files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maypole.core.errors import DataError
from maypole.data.blocks import Block, typed_column
from maypole.data.rows import CHAT, COMPLETION, PROMPT, RowType

Row = Mapping[str, Any]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


class Lossy(Exception):
    """A row that does not fit the shape that its columns promise: (field, what is wrong, what would be right)."""


@dataclass(frozen=True)
class Shape:
    """`convert` makes the columns of `gives` from one row; the columns `uses` are then dropped."""

    name: str
    needs: frozenset[str]
    uses: tuple[str, ...]
    gives: RowType
    convert: Callable[[Row], Row]


def convert(block: Block, row_type: RowType) -> tuple[Block, Shape | None]:
    """`block` with the columns of `row_type`, made from a known shape where its own columns lack them."""
    found = set(block.table.column_names)
    if set(row_type.columns) <= found:
        return block, None
    shape = next((s for s in SHAPES if s.gives.name == row_type.name and s.needs <= found), None)
    if shape is None:
        return block, None
    converted: list[Row] = []
    for index, row in enumerate(block.table.select([c for c in shape.uses if c in found]).to_pylist()):
        try:
            converted.append(shape.convert(row))
        except Lossy as error:
            field, what, expected = error.args
            raise block.error(index, what, field=field, expected=expected) from error
    table = block.table.drop_columns([c for c in shape.uses if c in found and c not in row_type.columns])
    for name in row_type.columns:
        column = typed_column(block.file, block.rows, name, [row[name] for row in converted])
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return block.with_table(table), shape


def _string(row: Row, name: str, *, default: str | None = None) -> str:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise Lossy(name, "expected a string, found null" if value is None else "expected a string", "")
    return value


def _alpaca_prompt(row: Row) -> str:
    if row.get("history"):
        raise Lossy("history", "earlier turns would be lost", "ask for chat rows, or remove the column")
    return _alpaca_question(row)


def _alpaca_question(row: Row) -> str:
    given = _string(row, "input", default="")
    return _string(row, "instruction") + (f"\n\n{given}" if given else "")


def _alpaca_completion(row: Row) -> Row:
    if row.get("system"):
        raise Lossy("system", "the system message would be lost", "ask for chat rows, or remove the column")
    return {"prompt": _alpaca_prompt(row), "completion": _string(row, "output")}


def _alpaca_chat(row: Row) -> Row:
    turns = [_turn("system", row["system"])] if row.get("system") else []
    for earlier in row.get("history") or []:
        if not isinstance(earlier, list) or len(earlier) != 2 or not all(isinstance(text, str) for text in earlier):
            raise Lossy("history", "expected pairs [question, answer]", "")
        turns += [_turn("user", earlier[0]), _turn("assistant", earlier[1])]
    return {
        "messages": [*turns, _turn("user", _alpaca_question(row)), _turn("assistant", _string(row, "output"))],
    }


def _sharegpt(row: Row) -> Row:
    turns = [_turn("system", row["system"])] if row.get("system") else []
    conversation = row["conversations"]
    if not isinstance(conversation, list) or not conversation:
        raise Lossy("conversations", "expected a list of turns, found none", '[{"from": "human", "value": "..."}]')
    for number, turn in enumerate(conversation, start=1):
        if not isinstance(turn, Mapping):
            raise Lossy("conversations", f"turn {number} is no object", '{"from": ..., "value": ...}')
        if "from" not in turn and "role" in turn:
            turns.append(dict(turn))
            continue
        speaker, words = turn.get("from"), turn.get("value")
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise Lossy("conversations", f'turn {number} is "from" {speaker!r}', f"one of {', '.join(ROLES)}")
        if not isinstance(words, str):
            raise Lossy("conversations", f'turn {number} has no string as its "value"', "")
        extra = {k: v for k, v in turn.items() if k not in ("from", "value") and v is not None}
        turns.append({**_turn(role, words), **extra})
    return {"messages": turns}


def _talk(row: Row, name: str, role: str) -> list[Row]:
    value = row[name]
    return list(value) if isinstance(value, list) else [_turn(role, _string(row, name))]


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SHAPES = (
    Shape(
        "alpaca",
        frozenset({"instruction", "output"}),
        ("instruction", "input", "output", "system", "history"),
        CHAT,
        _alpaca_chat,
    ),
    Shape(
        "alpaca",
        frozenset({"instruction", "output"}),
        ("instruction", "input", "output", "system", "history"),
        COMPLETION,
        _alpaca_completion,
    ),
    Shape(
        "alpaca",
        frozenset({"instruction", "output"}),
        ("instruction", "input", "history"),
        PROMPT,
        lambda row: {"prompt": _alpaca_prompt(row)},
    ),
    Shape("ShareGPT", frozenset({"conversations"}), ("conversations", "system"), CHAT, _sharegpt),
    Shape(
        "prompt and completion",
        frozenset({"prompt", "completion"}),
        ("prompt", "completion"),
        CHAT,
        lambda row: {"messages": [*_talk(row, "prompt", "user"), *_talk(row, "completion", "assistant")]},
    ),
)


def missing(block: Block, row_type: RowType) -> DataError:
    """The error for a block without some column of `row_type`: what was found, and the flag that would name it."""
    found = block.table.column_names
    lacking = [name for name in row_type.columns if name not in found]
    likely = next((n for name in lacking for n in LIKELY_NAMES.get(name, ()) if n in found), None)
    free = [name for name in found if name not in row_type.columns]
    guess = likely or (free[0] if len(free) == 1 else None)
    wanted = next((name for name in lacking if guess in LIKELY_NAMES.get(name, ())), lacking[0])
    hint = f"--columns {wanted}={guess or 'NAME'}"
    if "messages" in found and row_type.name in ("COMPLETION", "PROMPT"):
        hint = "rows with messages are chat rows; taking one turn out of them would lose the others"
    first = block.rows[0] if len(block.rows) else 1
    return DataError(
        f'no column "{lacking[0]}" ({row_type.name} rows need {", ".join(row_type.columns)}); '
        f"found {', '.join(found) or 'no columns'}",
        file=block.file,
        row=first if first > 1 else None,
        expected=hint,
    )


LIKELY_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("content", "body", "document", "markdown", "raw_content", "passage"),
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "prompt": ("question", "instruction", "query", "input", "context_messages"),
    "completion": ("answer", "response", "output", "target", "text"),
    "chosen": ("preferred", "accepted", "winner", "response_chosen"),
    "rejected": ("dispreferred", "loser", "response_rejected"),
    "label": ("is_good", "score", "target"),
    "question": ("query", "prompt", "instruction"),
    "answers": ("answer", "targets", "aliases"),
    "completions": ("responses", "candidates", "outputs"),
    "subject": ("head", "s"),
    "relation": ("predicate", "r"),
    "object": ("tail", "o"),
    "image": ("image_path", "file_name", "img"),
}
