"""Prompts and continuations as token ids, checked against the context before anything runs. Knows no tensors."""

from typing import Any

import jinja2
import numpy as np

from maypole.core.errors import DataError, UserError
from maypole.data import encode_prompt
from maypole.data.chat import render
from maypole.engine.prefix_tree import Ids
from maypole.engine.request import Request, Sampling, ScoreRequest, is_ids, unsupported
from maypole.models.language_model import LanguageModel


def encode(request: Request, tokenizer: Any, index: int, vocabulary: int | None = None) -> Ids:
    """The prompt's ids (n,), n > 0. UserError or DataError with the request's position otherwise.

    Ids given by the caller are checked against `vocabulary`, the number of embeddings.
    """
    prompt: Any = request.prompt
    if is_ids(prompt):
        ids = np.asarray(prompt, dtype=np.int64)
        check_ids(ids, vocabulary, index)
        return ids
    special = request.tools is not None or request.chat_template_kwargs is not None
    if special and isinstance(prompt, str):
        raise UserError("tools and chat_template_kwargs need messages", f"request {index}")
    ids = _templated(request, tokenizer, index) if special else encode_prompt(prompt, tokenizer)
    if not ids:
        raise UserError("the prompt has no tokens", f"request {index}", "a prompt that is not empty")
    return np.asarray(ids, dtype=np.int64)


def check_ids(ids: Ids, vocabulary: int | None, index: int) -> None:
    """UserError where a token id has no embedding."""
    wrong = ids[(ids < 0) | (ids >= (2**31 if vocabulary is None else vocabulary))]
    if len(wrong):
        raise UserError(f"there is no token {int(wrong[0])}", f"request {index}", f"ids from 0 to {vocabulary} - 1")


def check_sampling(sampling: Sampling, vocabulary: int, index: int) -> None:
    """UserError or UnsupportedCapability for what this engine cannot follow."""
    unsupported(sampling, f"request {index}")
    check_ids(np.asarray([int(i) for i in sampling.logit_bias or ()], dtype=np.int64), vocabulary, index)
    check_ids(np.asarray(sampling.stop_token_ids, dtype=np.int64), vocabulary, index)


def check_length(tokens: int, max_length: int, index: int) -> None:
    """UserError where a sequence is longer than the model's context."""
    if tokens > max_length:
        what = f"{tokens:,} tokens do not fit the model's context of {max_length:,}"
        raise UserError(what, f"request {index}", f"at most {max_length:,} tokens, prompt and completion")


def scored(
    request: ScoreRequest, tokenizer: Any, max_length: int, vocabulary: int, index: int
) -> list[tuple[Ids, int]]:
    """(ids, index of the first scored token) of each continuation."""
    found: list[tuple[Ids, int]] = []
    before: list[int] = (
        [] if request.prompt is None else encode(Request(request.prompt), tokenizer, index, vocabulary).tolist()
    )
    for continuation in request.continuations:
        ids, start = _joined(request.prompt, before, continuation, tokenizer, index)
        if start < 1:
            raise UserError(
                "the first token has nothing before it", f"request {index}", "a prompt of one token or more"
            )
        check_length(len(ids) - 1, max_length, index)
        array = np.asarray(ids, dtype=np.int64)
        check_ids(array, vocabulary, index)
        found.append((array, start))
    return found


def _joined(prompt: Any, before: list[int], continuation: Any, tokenizer: Any, index: int) -> tuple[list[int], int]:
    if prompt is None:
        bos = tokenizer.bos_token_id
        if bos is None:
            raise UserError("the tokenizer has no beginning-of-sequence token", f"request {index}", "give a prompt")
        plain = continuation if not isinstance(continuation, str) else _plain(continuation, tokenizer)
        return [bos, *map(int, plain)], 1
    if not isinstance(continuation, str):
        return [*before, *map(int, continuation)], len(before)
    if is_ids(prompt):
        return [*before, *_plain(continuation, tokenizer)], len(before)
    if isinstance(prompt, str):
        ids = encode_prompt(prompt + continuation, tokenizer)
    else:
        ids = _plain(render(prompt, tokenizer, add_generation_prompt=True) + continuation, tokenizer)
    start = next((i for i, (x, y) in enumerate(zip(before, ids)) if x != y), min(len(before), len(ids)))
    return ids, start


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _templated(request: Request, tokenizer: Any, index: int) -> list[int]:
    options = dict(request.chat_template_kwargs or {})
    messages: Any = request.prompt
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tools=request.tools, tokenize=False,
            **{"add_generation_prompt": True, **options},
        )  # fmt: skip
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template cannot render this: {error}", row=index + 1, field="messages") from error
    return _plain(str(text), tokenizer)


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """The ids that end a completion."""
    return frozenset(lm.end_tokens)
