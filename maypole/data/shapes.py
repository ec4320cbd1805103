"""Known shapes of rows, recognised by their columns and converted, with a line in the log.

alpaca (instruction, input, output), ShareGPT (conversations of from/value), messages under another name, prompt +
completion where a chat is asked for, and pairs of whole conversations: hh-rlhf's transcripts, OpenRLHF's messages,
UltraFeedback, whose answers repeat the prompt, and LLaMA-Factory's; sets of rated and compared answers are in
`maypole.data.preference_shapes`. Converted columns are replaced; all others travel along. What would lose turns (a chat
asked for as one completion) is no shape and stays an error. Knows nothing about files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from maypole.core.errors import DataError
from maypole.data.blocks import Block, typed_column
from maypole.data.preference_shapes import PREFERENCE_SHAPES
from maypole.data.rows import CHAT, COMPLETION, PAIR, PROMPT, RowType
from maypole.data.shape import Lossy, Row, Shape, message, string

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


def shape_of(block: Block, row_type: RowType) -> Shape | None:
    """The shape that `block` has, where it is not of `row_type` already."""
    return next((s for s in SHAPES if s.fits(block, row_type)), None)


@dataclass(frozen=True, slots=True)
class Converted:
    """`block` as it is now and the shape that it had, if it had one.

    `undecided` counts what prefers no answer and made no row; `late` are the numbers of pairs whose answers are several
    messages.
    """

    block: Block
    shape: Shape | None = None
    undecided: int = 0
    late: tuple[int, ...] = ()


def convert(block: Block, row_type: RowType) -> Converted:
    """`block` with the columns of `row_type`, made from a known shape where its own columns lack them."""
    found = set(block.table.column_names)
    shape = shape_of(block, row_type)
    if shape is None:
        return Converted(block)
    converted: list[Row] = []
    begins: list[int] = []
    undecided = 0
    for index, unit in shape.units(block.table.select([c for c in shape.uses if c in found]).to_pylist()):
        try:
            made = shape.convert(unit)
        except Lossy as error:
            field, what, expected = error.args
            raise block.error(index, what, field=field, expected=expected) from error
        made = made if isinstance(made, list) else [made]
        undecided += not made
        converted += made
        begins += [index] * len(made)
    table = block.table.drop_columns([c for c in shape.uses if c in found and c not in row_type.columns])
    if begins != list(range(len(block.rows))):
        block, table = replace(block, rows=[block.rows[i] for i in begins]), table.take(pa.array(begins, pa.int64()))
    given = [name for name in row_type.optional if any(name in row for row in converted)]
    for name in (*row_type.columns, *given):
        column = typed_column(block.file, block.rows, name, [row.get(name) for row in converted])
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    late = [row for row, made in zip(block.rows, converted) if row_type is PAIR and _of_several_turns(made)]
    return Converted(block.with_table(table), shape, undecided, tuple(late))


def _of_several_turns(pair: Row) -> bool:
    return any(not isinstance(pair[name], str) and len(pair[name]) > 1 for name in ("chosen", "rejected"))


def _alpaca_prompt(row: Row) -> str:
    if row.get("history"):
        raise Lossy("history", "earlier turns would be lost", "ask for chat rows, or remove the column")
    return _alpaca_question(row)


def _alpaca_question(row: Row) -> str:
    given = string(row, "input", default="")
    return string(row, "instruction") + (f"\n\n{given}" if given else "")


def _alpaca_completion(row: Row) -> Row:
    if row.get("system"):
        raise Lossy("system", "the system message would be lost", "ask for chat rows, or remove the column")
    return {"prompt": _alpaca_prompt(row), "completion": string(row, "output")}


def _alpaca_chat(row: Row) -> Row:
    turns = [message("system", row["system"])] if row.get("system") else []
    for earlier in row.get("history") or []:
        if not isinstance(earlier, list) or len(earlier) != 2 or not all(isinstance(text, str) for text in earlier):
            raise Lossy("history", "expected pairs [question, answer]", "")
        turns += [message("user", earlier[0]), message("assistant", earlier[1])]
    return {
        "messages": [*turns, message("user", _alpaca_question(row)), message("assistant", string(row, "output"))],
    }


def _sharegpt(row: Row) -> Row:
    return {"messages": _shared_turns(row)}


def _shared_turns(row: Row) -> list[Row]:
    turns: list[Row] = [message("system", row["system"])] if row.get("system") else []
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
        turns.append({**message(role, words), **extra})
    return turns


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _transcript_pair(row: Row) -> Row:
    return _parted(*(_spoken(row, name) for name in ("chosen", "rejected")))


def _spoken(row: Row, name: str) -> list[Row]:
    """The turns of a transcript "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    before, *parts = _SPEAKER.split(string(row, name))
    if before.strip() or not parts:
        raise Lossy(name, "no transcript: it begins with neither speaker", '"\\n\\nHuman: ...\\n\\nAssistant: ..."')
    return [message(ROLES[who.lower()], words.strip()) for who, words in zip(parts[::2], parts[1::2])]


def _messages_pair(row: Row) -> Row:
    scores = {f"{name}_score": row[f"score_{name}"] for name in ("chosen", "rejected") if f"score_{name}" in row}
    return _parted(*(_given(row, name) for name in ("chosen", "rejected"))) | scores


def _given(row: Row, name: str) -> list[Row]:
    if not isinstance(row[name], list) or not all(isinstance(turn, Mapping) for turn in row[name]):
        raise Lossy(name, "expected a list of messages", '[{"role": ..., "content": ...}]')
    return [dict(turn) for turn in row[name]]


def _parted(chosen: list[Row], rejected: list[Row]) -> dict[str, Any]:
    """Two conversations as the turns that they share and what follows; at least the last turn is an answer."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), max(most, 0))
    if not shared:
        raise Lossy("chosen", "it has no turn in common with rejected that could be the prompt", "the same first turns")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _repeats_the_prompt(row: Row) -> bool:
    """Whether the answers are whole conversations though there is a prompt."""
    first = row["chosen"][0] if isinstance(row["chosen"], list) and row["chosen"] else None
    return isinstance(first, Mapping) and first.get("role") in ("system", "user")


def _sharegpt_pair(row: Row) -> Row:
    answers = {name: _shared_turns({"conversations": [row[name]]}) for name in ("chosen", "rejected")}
    return {"prompt": _shared_turns(row), **answers}


def _talk(row: Row, name: str, role: str) -> list[Row]:
    value = row[name]
    return list(value) if isinstance(value, list) else [message(role, string(row, name))]


SHAPES = (
    *PREFERENCE_SHAPES,
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
    Shape(
        "ShareGPT pair",
        frozenset({"conversations", "chosen", "rejected"}),
        ("conversations", "system", "chosen", "rejected"),
        PAIR,
        _sharegpt_pair,
        lambda row: isinstance(row["chosen"], Mapping),
    ),
    Shape(
        "UltraFeedback",
        frozenset({"prompt", "chosen", "rejected"}),
        ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
        PAIR,
        _messages_pair,
        _repeats_the_prompt,
    ),
    Shape(
        "OpenRLHF pair",
        frozenset({"chosen", "rejected"}),
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        PAIR,
        _messages_pair,
        lambda row: isinstance(row["chosen"], list),
    ),
    Shape(
        "hh-rlhf transcript",
        frozenset({"chosen", "rejected"}),
        ("chosen", "rejected"),
        PAIR,
        _transcript_pair,
        lambda row: isinstance(row["chosen"], str) and bool(_SPEAKER.match(row["chosen"])),
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
    "prompt": ("question", "instruction", "query", "input"),
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
