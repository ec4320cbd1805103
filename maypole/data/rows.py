"""Row types: which columns a method's rows have and what each holds.

Prompts and completions are strings or lists of messages ``{"role": ..., "content": ...}``. Every row type lets extra
columns travel along untouched. Knows nothing about files, tokenizers or models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maypole.core.errors import DataError
from maypole.data import kinds


def no_rule(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The rule of row types whose columns do not depend on each other."""
    return None


@dataclass(frozen=True)
class RowType:
    """One kind of row.

    `columns` maps each required column to what it holds, `optional` those that are checked where they occur (a null
    there means "not given"); both name a kind of `maypole.data.kinds.KINDS`. `rule(row)` checks what columns must be
    to each other and returns None or (field, problem).
    """

    name: str
    columns: Mapping[str, str]
    rule: Callable[[Mapping[str, Any]], tuple[str, str] | None] = no_rule
    optional: Mapping[str, str] = field(default_factory=dict)

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise DataError naming the first field of `row` that is missing or wrong; return None for a good row."""
        for name, says in self.columns.items():
            if name not in row:
                raise DataError(f"the field is missing; found {', '.join(row) or 'none'}", field=name, expected=says)
            if problem := kinds.KINDS[says].problem(row[name]):
                raise DataError(problem, field=name)
        for name, says in self.optional.items():
            if row.get(name) is not None and (problem := kinds.KINDS[says].problem(row[name])):
                raise DataError(problem, field=name)
        if found := self.rule(row):
            raise DataError(found[1], field=found[0])

    def __repr__(self) -> str:
        return self.name


def _one_score_per_completion(row: Mapping[str, Any]) -> tuple[str, str] | None:
    given = [name for name in ("scores", "probabilities") if row.get(name) is not None]
    if not given:
        return "scores", 'one of "scores" and "probabilities" is needed, found neither'
    count = len(row["completions"])
    for name in given:
        values = row[name]
        if len(values) != count:
            return name, f"expected {count} values, one per completion, found {len(values)}"
        if any(isinstance(line, list) and len(line) != count for line in values):
            return name, f"expected a {count} × {count} matrix, found a line of another length"
    return None


def _has_a_blank_for_the_subject(row: Mapping[str, Any]) -> tuple[str, str] | None:
    request = row["requested_rewrite"]
    for name in ("prompt", "subject"):
        if not isinstance(request.get(name), str):
            return "requested_rewrite", f'"{name}" must be a string, found {kinds.describe(request.get(name))}'
    target = request.get("target_new")
    if not isinstance(target, Mapping) or not isinstance(target.get("str"), str):
        return "requested_rewrite", '"target_new" must be {"str": the new object}'
    if request["prompt"].count("{}") != 1:
        return "requested_rewrite", f'"prompt" must hold "{{}}" once, for the subject; found {request["prompt"]!r}'
    return None


_STRING, _NUMBER, _TALK = kinds.STRING.says, kinds.NUMBER.says, kinds.TEXT_OR_MESSAGES.says
_TOKENS = kinds.TOKENS.says

TEXT = RowType("TEXT", {"text": _STRING})
CHAT = RowType("CHAT", {"messages": kinds.MESSAGES.says})
COMPLETION = RowType("COMPLETION", {"prompt": _TALK, "completion": _TALK})
PROMPT = RowType("PROMPT", {"prompt": _TALK})
PAIR = RowType(
    "PAIR",
    {"prompt": _TALK, "chosen": _TALK, "rejected": _TALK},
    optional={
        "chosen_score": _NUMBER, "rejected_score": _NUMBER, "margin": _NUMBER,
        "prompt_ids": _TOKENS, "chosen_ids": _TOKENS, "rejected_ids": _TOKENS,
    },
)  # fmt: skip
"""The ids are those of answers that a model gave: what it said, token by token, with an end only where it ended."""
UNPAIRED = RowType("UNPAIRED", {"prompt": _TALK, "completion": _TALK, "label": kinds.BOOL.says})
SAMPLES = RowType(
    "SAMPLES",
    {"prompt": _TALK, "completions": kinds.COMPLETIONS.says},
    rule=_one_score_per_completion,
    optional={
        "scores": kinds.NUMBERS.says, "probabilities": kinds.PROBABILITIES.says,
        "prompt_ids": _TOKENS, "completion_ids": kinds.ANSWERS_TOKENS.says,
    },
)  # fmt: skip
QA = RowType("QA", {"question": _STRING, "answers": kinds.STRINGS.says}, optional={"passages": kinds.STRINGS.says})
TRIPLE = RowType("TRIPLE", {"subject": _STRING, "relation": _STRING, "object": _STRING})
EDIT = RowType("EDIT", {"requested_rewrite": kinds.OBJECT.says}, rule=_has_a_blank_for_the_subject)
IMAGE_TEXT = RowType("IMAGE_TEXT", {"image": kinds.IMAGE.says, "text": _STRING})
IMAGE_CHAT = RowType("IMAGE_CHAT", {"image": kinds.IMAGE.says, "conversations": kinds.TURNS.says})

ROW_TYPES: Mapping[str, RowType] = {
    row_type.name: row_type
    for row_type in (
        TEXT, CHAT, COMPLETION, PROMPT, PAIR, UNPAIRED, SAMPLES, QA, TRIPLE, EDIT, IMAGE_TEXT, IMAGE_CHAT,
    )
}  # fmt: skip
