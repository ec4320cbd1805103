"""Candidates for a chunk of prompts: drawn from the policy, token by token as it gave them, or taken from the data.

Every draw depends on (seed, round, place of the prompt in its round, number of the draw) alone. Knows nothing about
judges, files or training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from maypole.align.method import Method, candidates
from maypole.core.errors import DataError
from maypole.core.seeds import derive
from maypole.data.chat import Dropped, encode_completion
from maypole.engine import Engine, Request

_IDS = pa.list_(pa.int32())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
OWN = {
    "prompt_ids": _IDS,
    "completion_ids": pa.list_(_IDS),
    "finished": pa.list_(pa.bool_()),
    "logprobs": pa.list_(pa.list_(pa.float32())),
    "source": pa.list_(pa.string()),
    "scores": pa.list_(pa.float64()),
    "probabilities": pa.list_(pa.list_(pa.float64())),
    "version": pa.int64(),
    "row": pa.int64(),
}
"""Columns of the samples that the prompt rows must not have, beside ``completions``."""


def schema_of(prompts: pa.Schema) -> pa.Schema:
    """The samples' columns, for prompt rows with the columns `prompts`."""
    taken = [name for name in (*OWN, "completions") if name in prompts.names]
    if taken:
        expected = f"another name; the samples have {', '.join((*OWN, 'completions'))} of their own"
        raise DataError("the column's name is taken", field=taken[0], expected=expected)
    said = pa.string() if pa.types.is_string(prompts.field("prompt").type) else _MESSAGES
    own = [pa.field(name, kind) for name, kind in ({"completions": pa.list_(said)} | OWN).items()]
    return pa.schema([*prompts, *own])


def draw(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    method: Method,
    *,
    seed: int,
    round: int,
    first: int,
) -> Iterator[dict[str, Any]]:
    """Samples without a judge's word, for those of `rows` that leave the context room for an answer.

    numbers: the rows' numbers in the data; first: the place of the first one in its round.
    """
    encoded = [engine.encode(row["prompt"]) for row in rows]
    kept = [i for i, ids in enumerate(encoded) if len(ids) < engine.max_length]
    requests = [
        Request(encoded[i], replace(sampling, seed=derive(seed, "sampling", round, first + i, number)))
        for i in kept
        for number, sampling in enumerate(method.draws)
    ]
    outputs = iter(engine.generate(requests))
    drawn = candidates(method) - len(method.answers)
    names = ["greedy" if s.greedy else "sample" for s in method.draws for _ in range(s.n)]
    for i in kept:
        row, talks = rows[i], not isinstance(rows[i]["prompt"], str)
        mine = [next(outputs) for _ in range(drawn)]
        given = [_given(row, name, encoded[i], engine.tokenizer, numbers[i]) for name in method.answers]
        said = [output.text for output in mine]
        texts: list[Any] = [[{"role": "assistant", "content": text}] for text in said] if talks else said
        yield {
            **row,
            "prompt_ids": encoded[i],
            "completions": texts + [_like(row[name], talks) for name in method.answers],
            "completion_ids": [output.token_ids for output in mine] + given,
            "finished": [output.finish_reason == "stop" for output in mine] + [True] * len(given),
            "logprobs": [output.logprobs for output in mine] + [None] * len(given),
            "source": names + list(method.answers),
            "version": round,
            "row": numbers[i],
        }


def _given(
    row: Mapping[str, Any], name: str, prompt: list[int], tokenizer: PreTrainedTokenizerBase, number: int
) -> list[int]:
    """The tokens that an answer from the data adds to those of its prompt, which stay as the policy reads them."""
    if not row.get(name):
        raise DataError("no answer to stand beside the policy's", row=number + 1, field=name, expected="a text")
    whole = encode_completion(row["prompt"], row[name], tokenizer)
    if isinstance(whole, Dropped):
        raise DataError(whole.reason, row=number + 1, field=name)
    if whole.ids[: len(prompt)] == prompt:
        return whole.ids[len(prompt) :]
    # A token straddles the border: the answer alone, for the policy never sees it so.
    ids: Any = tokenizer(_text(row[name]), add_special_tokens=False)["input_ids"]
    ends = whole.ids[-1] in tokenizer.all_special_ids
    return [*ids, whole.ids[-1]] if ends else ids


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def _like(answer: Any, talks: bool) -> Any:
    """An answer in the form that the prompt has."""
    if talks:
        return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return _text(answer)
