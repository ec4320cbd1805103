import json
import logging

import pytest

from maypole.core.errors import DataError
from maypole.data import CHAT, COMPLETION, PROMPT, TEXT, read

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3", "id": 7},
    {"instruction": "Greet.", "input": "", "output": "Hello", "id": 8},
]
SHAREGPT = {
    "system": "Be short.",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "weight": 1.0}],
}


@pytest.fixture
def rows(tmp_path):
    def of(*objects, row_type):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(objects))
        return read(path, row_type).to_list()

    return of


def turn(role, content, **extra):
    return {"role": role, "content": content, **extra}


def test_alpaca_becomes_completions_prompts_or_chats_and_its_other_columns_stay(rows):
    assert rows(*ALPACA, row_type=COMPLETION) == [
        {"id": 7, "prompt": "Add.\n\n1 and 2", "completion": "3"},
        {"id": 8, "prompt": "Greet.", "completion": "Hello"},
    ]
    assert rows(*ALPACA, row_type=PROMPT)[1] == {"output": "Hello", "id": 8, "prompt": "Greet."}
    assert rows(*ALPACA, row_type=CHAT)[0] == {
        "id": 7,
        "messages": [turn("user", "Add.\n\n1 and 2"), turn("assistant", "3")],
    }


def test_alpaca_with_history_and_system_keeps_both_in_a_chat_and_is_no_single_completion(rows):
    full = {**ALPACA[0], "system": "Be short.", "history": [["Hi", "Hello"]]}
    assert [t["content"] for t in rows(full, row_type=CHAT)[0]["messages"]] == [
        "Be short.",
        "Hi",
        "Hello",
        "Add.\n\n1 and 2",
        "3",
    ]
    with pytest.raises(DataError, match=r'row 1, field "system": the system message would be lost'):
        rows(full, row_type=COMPLETION)
    with pytest.raises(DataError, match=r'row 2, field "history": earlier turns would be lost'):
        rows({**full, "system": "", "history": []}, {**full, "system": ""}, row_type=COMPLETION)


def test_sharegpt_becomes_a_chat_with_its_system_message_and_the_log_says_so(rows, caplog):
    with caplog.at_level(logging.INFO, logger="maypole"):
        found = rows(SHAREGPT, row_type=CHAT)
    assert found == [
        {
            "messages": [
                turn("system", "Be short.", weight=None),
                turn("user", "Hi", weight=None),
                turn("assistant", "Hello", weight=1.0),
            ]
        }
    ]
    assert "ShareGPT rows, converted to CHAT" in caplog.text


def test_an_unknown_speaker_names_row_turn_and_the_known_ones(rows):
    odd = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "narrator", "value": "..."}]}
    with pytest.raises(DataError, match=r'row 2, field "conversations": turn 2 is "from" \'narrator\'\n.*human'):
        rows({**odd, "conversations": odd["conversations"][:1]}, odd, row_type=CHAT)


def test_prompts_and_completions_become_a_chat_whether_strings_or_messages(rows):
    wanted = [{"messages": [turn("user", "Hi"), turn("assistant", "Hello")]}]
    assert rows({"prompt": "Hi", "completion": "Hello"}, row_type=CHAT) == wanted
    as_messages = {"prompt": [turn("user", "Hi")], "completion": [turn("assistant", "Hello")]}
    assert rows(as_messages, row_type=CHAT) == wanted
    assert rows({"prompt": [turn("user", "Hi")], "completion": "Hello"}, row_type=CHAT) == wanted


def test_columns_that_fit_are_never_reinterpreted(rows):
    both = {"instruction": "a", "output": "b", "prompt": "c", "completion": "d", "text": "e"}
    assert rows(both, row_type=COMPLETION) == [both]
    assert rows(both, row_type=TEXT) == [both]
