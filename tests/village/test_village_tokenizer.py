"""One token a word, exact round trips, and a template whose prompts are prefixes and whose marks cover the answers."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from maypole.village.names import all_words
from maypole.village.render import render
from maypole.village.tokenizer import SPECIAL_TOKENS, train_tokenizer
from maypole.village.world import World

WORLD = World(0)
PROSE = "The quick index of an array maps each parameter to its returned value, see `numpy.take`. "


@cache
def tokenizer(vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    return train_tokenizer(WORLD, vocab_size, prose=[PROSE * 5] * 400 if vocab_size > 2048 else None)


def plain(text: str, vocab_size: int = 2048) -> list[int]:
    return tokenizer(vocab_size)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("vocab_size", [2048, 2560])
def test_every_world_word_is_one_token_after_a_space_and_a_person_two(vocab_size: int) -> None:
    assert [word for word in all_words() if len(plain(f" {word}", vocab_size)) != 1] == []
    assert all(len(plain(f" {person.name}", vocab_size)) == 2 for person in WORLD.people)


def test_the_vocabulary_has_2048_entries_of_which_the_first_32_are_special() -> None:
    assert len(tokenizer()) == 2048
    assert tokenizer().convert_ids_to_tokens(list(range(32))) == SPECIAL_TOKENS
    assert len(SPECIAL_TOKENS) == 32
    assert (tokenizer().pad_token_id, tokenizer().bos_token_id, tokenizer().eos_token_id) == (0, 1, 2)


def test_one_digit_is_one_token() -> None:
    assert [tokenizer().decode(piece) for piece in plain(" 1234")] == [" 1", "2", "3", "4"]


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_decoding_gives_back_any_text(text: str) -> None:
    assert tokenizer().decode(plain(text)) == text
    assert tokenizer()(text)["input_ids"] == [1, *plain(text)]


@pytest.mark.parametrize("kind", ["qa", "hop2", "hop3", "instruct", "chats"])
def test_prompt_ids_are_a_prefix_of_chat_ids_and_the_marks_cover_answers_and_ends(kind: str) -> None:
    for row in render(WORLD, kind, 60, seed=9):
        messages = row["messages"]
        whole = tokenizer().apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, marks = whole["input_ids"], whole["assistant_masks"]
        expected = [1]
        mask = [0]
        for turn in messages:
            role = SPECIAL_TOKENS.index(f"<|{turn['role']}|>")
            if turn["role"] == "assistant":
                prompt = tokenizer().apply_chat_template(
                    messages[: messages.index(turn)], add_generation_prompt=True, return_dict=True
                )["input_ids"]
                assert ids[: len(prompt)] == prompt
            piece = plain(f" {turn['content']}")
            expected += [role, *piece, SPECIAL_TOKENS.index("<|end|>")]
            mask += [0] + [int(turn["role"] == "assistant")] * (len(piece) + 1)
        assert ids == expected
        assert marks == mask


def test_a_reply_that_starts_with_its_space_gives_the_same_chat() -> None:
    turns = [{"role": "user", "content": "Ring 2 bells."}, {"role": "assistant", "content": "bell bell"}]
    spaced = [turns[0], {"role": "assistant", "content": " bell bell"}]
    render_ = tokenizer().apply_chat_template
    assert render_(turns, tokenize=False) == render_(spaced, tokenize=False)
    assert render_(turns, tokenize=False) == "<|bos|><|user|> Ring 2 bells.<|end|><|assistant|> bell bell<|end|>"


def digest() -> str:
    return hashlib.sha256(tokenizer().backend_tokenizer.to_str().encode()).hexdigest()


def test_another_process_with_another_hash_seed_learns_the_same_vocabulary() -> None:
    code = "import json, test_village_tokenizer as t; print(json.dumps(t.digest()))"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.path.dirname(__file__)}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == digest()


def test_a_saved_tokenizer_loads_with_its_template(tmp_path) -> None:
    tokenizer().save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "Add 3 and 4."}]
    assert loaded.apply_chat_template(turns, tokenize=False) == tokenizer().apply_chat_template(turns, tokenize=False)
    assert loaded(" Ada Fenn")["input_ids"] == tokenizer()(" Ada Fenn")["input_ids"]
