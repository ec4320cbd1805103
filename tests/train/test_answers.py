"""A prompt with its answers is one tree, of the tokens that were sampled where there are such."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.errors import DataError
from maypole.data import PAIR
from maypole.data.chat import Dropped, encode_completion
from maypole.train import Segment
from maypole.train.answers import answer_tree
from tests.engine.engine_fixtures import byte_tokenizer

TOKENIZER: Any = byte_tokenizer()
TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=12)


def tree_of(row: dict, *names: str) -> Segment:
    found = answer_tree(row, names, TOKENIZER)
    assert isinstance(found, Segment)
    return found


@given(TEXT, TEXT, TEXT)
def test_every_path_of_the_tree_is_the_completion_encoded_alone(prompt: str, chosen: str, rejected: str):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    tree = tree_of(row, "chosen", "rejected")
    for child in tree.children:
        alone = encode_completion(prompt, row[child.name], TOKENIZER)
        assert not isinstance(alone, Dropped)
        assert tree.ids + child.ids == alone.ids
        assert tree.weights + child.weights == alone.weights


def test_sampled_tokens_are_taken_as_they_are_without_an_end_they_do_not_have():
    texts = {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    row = texts | {"prompt_ids": [5, 6], "chosen_ids": [9], "rejected_ids": [7, 2]}
    PAIR.check(row)
    tree = tree_of(row, "chosen", "rejected")
    assert (tree.ids, tree.weights) == ([5, 6], [0.0, 0.0])
    assert [(c.name, c.ids, c.weights) for c in tree.children] == [
        ("chosen", [9], [1.0]), ("rejected", [7, 2], [1.0, 1.0]),
    ]  # fmt: skip
    text = tree_of(texts, "chosen", "rejected")
    assert [c.ids[-1] for c in text.children] == [TOKENIZER.eos_token_id] * 2


def test_tokens_of_one_answer_without_the_other_are_an_error_that_names_the_column():
    row = {"prompt": "ab", "chosen": "cd", "rejected": "e", "prompt_ids": [5], "chosen_ids": [9]}
    with pytest.raises(DataError, match="rejected_ids"):
        answer_tree(row, ("chosen", "rejected"), TOKENIZER)


def test_token_ids_in_rows_are_whole_numbers():
    row: dict[str, Any] = {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    for wrong in ([0.5], [-1], ["a"], []):
        with pytest.raises(DataError, match="chosen_ids"):
            PAIR.check(row | {"chosen_ids": wrong})


def test_an_empty_answer_drops_the_row():
    row = {"prompt": "ab", "chosen": "", "rejected": "e"}
    assert isinstance(answer_tree(row, ("chosen", "rejected"), TOKENIZER), Dropped)
