import pytest

from maypole.core.errors import DataError
from maypole.data.kinds import KINDS
from maypole.data.rows import EDIT, PAIR, ROW_TYPES, SAMPLES, UNPAIRED

TALK = [{"role": "user", "content": "hi"}]
REWRITE = {
    "prompt": "{} lives in",
    "subject": "Ada",
    "target_new": {"str": "Rome"},
    "target_true": {"str": "Oslo"},
}
GOOD = {
    "TEXT": {"text": "a"},
    "CHAT": {"messages": TALK},
    "COMPLETION": {"prompt": TALK, "completion": "b"},
    "PROMPT": {"prompt": "a"},
    "PAIR": {"prompt": "a", "chosen": "b", "rejected": "c", "margin": None, "chosen_score": 1},
    "UNPAIRED": {"prompt": "a", "completion": "b", "label": True},
    "SAMPLES": {"prompt": "a", "completions": ["b", "c"], "probabilities": [[0.5, 0.1], [0.9, 0.5]]},
    "QA": {"question": "a", "answers": ["b"], "passages": ["c"]},
    "TRIPLE": {"subject": "a", "relation": "b", "object": "c"},
    "EDIT": {"requested_rewrite": REWRITE},
    "IMAGE_TEXT": {"image": "a.png", "text": "b"},
    "IMAGE_CHAT": {"image": {"bytes": b"x", "path": None}, "conversations": [{"from": "human", "value": "<image>"}]},
}


@pytest.mark.parametrize("name", ROW_TYPES)
def test_every_row_type_accepts_its_row_and_names_a_missing_field(name):
    row_type, row = ROW_TYPES[name], GOOD[name]
    assert row_type.check(row) is None
    assert set(row_type.columns.values()) | set(row_type.optional.values()) <= set(KINDS)
    for field in row_type.columns:
        with pytest.raises(DataError, match=f'field "{field}": the field is missing'):
            row_type.check({key: value for key, value in row.items() if key != field})


@pytest.mark.parametrize(
    ("row_type", "change", "message"),
    [
        (PAIR, {"chosen": None}, 'field "chosen": expected a string or a list of messages .*, found null'),
        (PAIR, {"chosen": [{"role": "user"}]}, 'in message 1 "content" is null'),
        (PAIR, {"prompt": []}, "found an empty list"),
        (PAIR, {"margin": float("nan")}, 'field "margin": expected a number, found nan'),
        (UNPAIRED, {"label": 1}, "expected true or false, found a number"),
        (SAMPLES, {"probabilities": None}, 'one of "scores" and "probabilities" is needed'),
        (SAMPLES, {"scores": [1.0]}, 'field "scores": expected 2 values, one per completion, found 1'),
        (SAMPLES, {"probabilities": [[1.0], [1.0]]}, "expected a 2 × 2 matrix"),
        (SAMPLES, {"completions": ["a", None]}, "item 2: expected a string or a list of messages"),
        (EDIT, {"requested_rewrite": {**REWRITE, "prompt": "Ada lives in"}}, "for the subject; found 'Ada lives in'"),
        (EDIT, {"requested_rewrite": {**REWRITE, "target_new": "Rome"}}, '"target_new" must be'),
    ],
)
def test_a_wrong_value_is_told_with_its_field_and_what_was_found(row_type, change, message):
    with pytest.raises(DataError, match=message):
        row_type.check({**GOOD[row_type.name], **change})
