import json
import logging

import pytest

from maypole.core.errors import DataError
from maypole.data import CHAT, COMPLETION, PAIR, PROMPT, SAMPLES, TEXT, read

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


MESSAGES = [turn("user", "Who keeps the well?")]


def test_conversations_that_part_early_are_told_with_their_rows(rows, caplog):
    def said(*turns: str) -> str:
        return "".join(f"\n\n{who}: {words}" for who, words in zip(("Human", "Assistant") * 2, turns))

    good = {"chosen": said("a", "b"), "rejected": said("a", "c")}
    early = {"chosen": said("a", "b", "d", "e"), "rejected": said("a", "c", "d", "e")}
    found = rows(good, early, row_type=PAIR)
    assert [len(row["chosen"]) for row in found] == [1, 3]
    assert "1 rows (2) have two conversations that part before their last turns" in caplog.text


ANNOTATED = {
    "source": "evol_instruct", "instruction": "Who keeps the well?", "models": ["a", "b", "c", "d"],
    "completions": [
        {
            "model": model, "principle": "helpfulness", "custom_system_prompt": "Be of use.", "response": answer,
            "annotations": {
                "instruction_following": {"Rating": ratings[0], "Rationale": "It does."},
                "honesty": {"Rating": ratings[1], "Rationale": "It is."},
                "truthfulness": {"Type": ["1"], "Rationale": "None", "Rating": "5", "Rationale For Rating": "It is."},
            },
            "critique": "Good.", "overall_score": 10.0, "fine-grained_score": 1.0,
        }
        for model, answer, ratings in (
            ("a", "Mara.", ("5", "5")), ("b", "Nobody.", ("1", "2")), ("c", "Tomas.", ("2", "1")),
            ("d", "Well, Mara.", ("5", "N/A")),
        )
    ],
    "correct_answers": ["None"], "incorrect_answers": ["None"],
}  # fmt: skip


def test_rated_answers_of_ultrafeedback_are_pairs_of_every_two_that_differ_or_samples_with_mean_ratings(rows, caplog):
    found = rows(ANNOTATED, row_type=PAIR)
    mean = 8 / 3
    assert [(r["chosen"], r["rejected"], r["chosen_score"], r["rejected_score"]) for r in found] == [
        ("Mara.", "Nobody.", 5.0, mean), ("Mara.", "Tomas.", 5.0, mean),
        ("Well, Mara.", "Nobody.", 5.0, mean), ("Well, Mara.", "Tomas.", 5.0, mean),
    ]  # fmt: skip
    assert {r["prompt"] for r in found} == {"Who keeps the well?"}
    assert {r["source"] for r in found} == {"evol_instruct"}
    (sample,) = rows(ANNOTATED, row_type=SAMPLES)
    assert sample["completions"] == ["Mara.", "Nobody.", "Tomas.", "Well, Mara."]
    assert sample["scores"] == [5.0, mean, mean, 5.0]
    alike = {**ANNOTATED, "completions": [ANNOTATED["completions"][0], ANNOTATED["completions"][3]]}
    with pytest.raises(DataError, match="no rows"):
        rows(alike, row_type=PAIR)
    assert "1 rows prefer no answer and are left out" in caplog.text
    with pytest.raises(DataError, match=r'row 2, field "completions": answer 1 has no text'):
        rows(ANNOTATED, {**ANNOTATED, "completions": [{"response": None}]}, row_type=PAIR)


HELPSTEER = [
    {"prompt": prompt, "response": answer, "helpfulness": helps, "correctness": 4, "coherence": 4, "complexity": 2,
     "verbosity": 1}
    for prompt, answer, helps in (
        ("Who?", "Mara.", 4), ("Who?", "Nobody.", 0), ("Who?", "Tomas.", 0), ("Where?", "Here.", 3),
        ("When?", "Now.", 1), ("When?", "May.", 2),
    )
]  # fmt: skip


def test_rows_of_helpsteer_that_share_a_prompt_are_pairs_by_helpfulness_wherever_a_block_ends(tmp_path, monkeypatch):
    names = ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
    for size in (1000, 4, 2, 1):
        monkeypatch.setattr("maypole.data.jsonl.ROWS_PER_BLOCK", size)
        path = tmp_path / f"{size}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in HELPSTEER))
        assert [[row[name] for name in names] for row in read(path, PAIR).to_list()] == [
            ["Who?", "Mara.", "Nobody.", 4, 0], ["Who?", "Mara.", "Tomas.", 4, 0], ["When?", "May.", "Now.", 2, 1],
        ]  # fmt: skip
        assert sorted(read(path, PAIR).column_names) == sorted(names)


def test_preferences_of_helpsteer_say_who_is_better_and_by_how_much(rows):
    row = {
        "split": "train", "prompt": "Who?", "response_1": "Mara.", "response_2": "Nobody.", "preference_strength": -2,
        "preference_statement": "Response 1 knows.", "preference_elaboration": "",
    }  # fmt: skip
    better = {**row, "preference_strength": 1}
    found = rows(row, {**row, "preference_strength": 0}, better, row_type=PAIR)
    assert [(r["chosen"], r["rejected"], r["margin"]) for r in found] == [
        ("Mara.", "Nobody.", 2),
        ("Nobody.", "Mara.", 1),
    ]
    third = {
        "domain": "general", "language": "english", "context": MESSAGES, "response1": "Nobody.", "response2": "Mara.",
        "overall_preference": 3, "individual_preference": [],
    }  # fmt: skip
    (found,) = rows(third, row_type=PAIR)
    assert (found["prompt"], found["chosen"]) == (MESSAGES, [turn("assistant", "Mara.")])
    assert (found["rejected"], found["margin"]) == ([turn("assistant", "Nobody.")], 3)


def test_shp_pairs_are_by_their_label_and_keep_their_scores(rows):
    row = {
        "post_id": "itoj1", "domain": "askculinary_train", "history": "Who keeps the well?", "c_root_id_A": "g1",
        "human_ref_A": "Nobody.", "human_ref_B": "Mara.", "labels": 0, "seconds_difference": 7.0, "score_ratio": 3.0,
        "score_A": 4, "score_B": 12,
    }  # fmt: skip
    (found,) = rows(row, row_type=PAIR)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("Who keeps the well?", "Mara.", "Nobody.")
    assert (found["chosen_score"], found["rejected_score"], found["score_ratio"]) == (12, 4, 3.0)
    with pytest.raises(DataError, match=r'row 2, field "labels": found 2\n.*one of 0, 1'):
        rows(row, {**row, "labels": 2}, row_type=PAIR)


def test_safe_rlhf_pairs_are_by_the_better_answer(rows):
    row = {
        "prompt": "Who keeps the well?", "response_0": "Nobody.", "response_1": "Mara.", "is_response_0_safe": True,
        "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0,
    }  # fmt: skip
    (found,) = rows(row, row_type=PAIR)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("Who keeps the well?", "Mara.", "Nobody.")
    assert found["safer_response_id"] == 0


def test_stack_exchange_pairs_are_j_before_k(rows):
    row = {
        "qid": 7, "question": "Who keeps the well?", "date": "2012-01-30", "metadata": ["https://example.org/7"],
        "response_j": "Mara.", "response_k": "Nobody.",
    }  # fmt: skip
    (found,) = rows(row, row_type=PAIR)
    assert found == {
        "qid": 7, "date": "2012-01-30", "metadata": ["https://example.org/7"], "prompt": "Who keeps the well?",
        "chosen": "Mara.", "rejected": "Nobody.",
    }  # fmt: skip


def test_rlhflow_prompts_and_judged_answers_have_names_of_their_own(rows):
    assert rows({"context": "x", "context_messages": MESSAGES}, row_type=PROMPT) == [
        {"context": "x", "prompt": MESSAGES}
    ]
    judged = {"prompt": MESSAGES, "responses": ["Mara.", "Nobody."], "rewards": [2.5, -1.0]}
    assert rows(judged, row_type=SAMPLES) == [
        {
            "prompt": MESSAGES, "scores": [2.5, -1.0],
            "completions": [[turn("assistant", "Mara.")], [turn("assistant", "Nobody.")]],
        }
    ]  # fmt: skip
