"""A prompt and the answers to it as one tree of tokens: the prompt once, an answer a branch.

An answer that a model gave is learnt as the tokens it gave, never as its text cut into tokens anew: an answer that
stopped at its length limit has no end token, and none is added. Knows nothing about losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from maypole.core.errors import DataError
from maypole.data.chat import EMPTY_COMPLETION, Dropped, encode_completion
from maypole.train.objective import ALSO, Segment


def answer_tree(row: Mapping[str, Any], names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
    """The context "prompt" with the answers in the columns `names` as its children, called as their columns are.

    Where the row has `prompt_ids`, the ids of each answer stand in ``NAME_ids`` and are taken as they are. Else the
    texts or messages are encoded as completions of ``row["prompt"]``; a token that straddles the border belongs to
    each answer.
    """
    if row.get("prompt_ids") is not None:
        return _as_sampled(row, names)
    encoded = [encode_completion(row["prompt"], row[name], tokenizer) for name in names]
    whole = [one for one in encoded if not isinstance(one, Dropped)]
    if len(whole) < len(encoded):
        return next(one for one in encoded if isinstance(one, Dropped))
    shared = min(min(one.start for one in whole), _alike([one.ids for one in whole]))
    answers = (Segment(one.ids[shared:], one.weights[shared:], name) for name, one in zip(names, whole))
    context = whole[0].ids[:shared]
    return Segment(context, [0.0] * shared, "prompt", tuple(answers))


def without_repeats(tree: Segment) -> Segment:
    """The tree with answers that are one and the same computed once, under all their names."""
    answers: dict[tuple[int, ...], Segment] = {}
    for answer in tree.children:
        ids = tuple(answer.ids)
        known = answers.get(ids)
        answers[ids] = answer if known is None else replace(known, name=f"{known.name}{ALSO}{answer.name}")
    return replace(tree, children=tuple(answers.values()))


def _as_sampled(row: Mapping[str, Any], names: Sequence[str]) -> Segment | Dropped:
    answers: list[Segment] = []
    for name in names:
        ids = row.get(f"{name}_ids")
        if ids is None:
            what = "prompt_ids has no answer's ids beside it"
            raise DataError(what, field=f"{name}_ids", expected="the ids of every answer, or no prompt_ids")
        if not ids:
            return Dropped(EMPTY_COMPLETION)
        answers.append(Segment(list(ids), [1.0] * len(ids), name))
    return Segment(list(row["prompt_ids"]), [0.0] * len(row["prompt_ids"]), "prompt", tuple(answers))


def _alike(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    columns = enumerate(zip(*sequences))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, sequences)))
