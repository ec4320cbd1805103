import json
import logging

import pytest

from maypole.core.errors import DataError
from maypole.data import CHAT, COMPLETION, PAIR, PROMPT, TEXT, read

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


ASKED = [turn("user", "Hi"), turn("assistant", "Yes?"), turn("user", "Who keeps the well?")]


def test_hh_rlhf_transcripts_become_their_shared_turns_and_two_answers(rows):
    def said(last: str) -> str:
        return f"\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who keeps the well?\n\nAssistant: {last}"

    found = rows({"chosen": said("Mara."), "rejected": said("Nobody.\n\nReally.")}, row_type=PAIR)
    assert found == [
        {"prompt": ASKED, "chosen": [turn("assistant", "Mara.")], "rejected": [turn("assistant", "Nobody.\n\nReally.")]}
    ]


def test_a_transcript_pair_without_a_shared_beginning_names_its_row(rows):
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with pytest.raises(DataError, match=r'row 2, field "chosen": it has no turn in common with rejected'):
        rows(good, {**good, "rejected": "\n\nHuman: x\n\nAssistant: c"}, row_type=PAIR)
    with pytest.raises(DataError, match=r'row 2, field "rejected": no transcript'):
        rows(good, {**good, "rejected": "c"}, row_type=PAIR)


def test_openrlhf_pairs_of_conversations_part_where_they_first_differ(rows):
    chosen = [*ASKED, turn("assistant", "Mara."), turn("user", "Since?"), turn("assistant", "May.")]
    rejected = [*ASKED, turn("assistant", "Nobody.")]
    assert rows({"chosen": chosen, "rejected": rejected}, row_type=PAIR) == [
        {"prompt": ASKED, "chosen": chosen[3:], "rejected": rejected[3:]}
    ]


def test_ultrafeedback_keeps_its_scores_and_says_its_prompt_once(rows):
    asked = [turn("user", "Who keeps the well?")]
    row = {
        "prompt": "Who keeps the well?", "prompt_id": "7", "score_chosen": 8.5, "score_rejected": 3.0,
        "chosen": [*asked, turn("assistant", "Mara.")], "rejected": [*asked, turn("assistant", "Nobody.")],
    }  # fmt: skip
    assert rows(row, row_type=PAIR) == [
        {
            "prompt": asked, "prompt_id": "7", "chosen": [turn("assistant", "Mara.")],
            "rejected": [turn("assistant", "Nobody.")], "chosen_score": 8.5, "rejected_score": 3.0,
        }
    ]  # fmt: skip


def test_sharegpt_pairs_have_one_turn_an_answer(rows):
    row = {
        "conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "What"},
    }  # fmt: skip
    assert rows(row, row_type=PAIR) == [
        {
            "prompt": [turn("user", "Hi")],
            "chosen": [turn("assistant", "Hello")],
            "rejected": [turn("assistant", "What")],
        }
    ]


def test_pairs_that_are_alike_keep_their_last_turn_as_the_answer(rows):
    same = [*ASKED, turn("assistant", "Mara.")]
    (found,) = rows({"chosen": same, "rejected": same}, row_type=PAIR)
    assert (found["prompt"], found["chosen"], found["rejected"]) == (ASKED, same[3:], same[3:])


def test_pairs_that_are_as_they_should_be_are_never_reinterpreted(rows):
    plain = {"prompt": "Hi", "chosen": "Hello", "rejected": "\n\nHuman: What"}
    messages = {"prompt": ASKED, "chosen": [turn("assistant", "Mara.")], "rejected": [turn("assistant", "Nobody.")]}
    assert rows(plain, row_type=PAIR) == [plain]
    assert rows(messages, row_type=PAIR) == [messages]
