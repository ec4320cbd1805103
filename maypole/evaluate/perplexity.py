"""How surprised a model is by text: nll per document, and the perplexity of all with its interval.

Documents go through the engine's packed scoring in windows; nothing is padded. Knows nothing about where rows come
from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.core.statistics import Interval, paired_ratio
from maypole.data import Dropped, encode_chat, encode_completion, encode_prompt
from maypole.engine import Engine, ScoreRequest
from maypole.evaluate.windows import windows
from maypole.models.language_model import LanguageModel

CHUNK = 256
"""Documents scored by one call: bounds memory, whatever the corpus."""

Document = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or a row with `text`, `messages` or `prompt` and `completion`."""


@dataclass(frozen=True)
class Perplexity:
    """nll: (documents,) in nats, summed over the scored `tokens` (documents,); `dropped` had none to score.

    `perplexity` is exp(Σ nll / Σ tokens); its `interval` draws documents, since tokens of one are not independent.
    `documents` says which of the given ones the numbers belong to.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    perplexity: float
    interval: Interval
    dropped: int = 0

    def change_from(self, before: "Perplexity", *, seed: int = 0) -> Interval:
        """The change in perplexity, same documents and tokens before and after; below 0 is better."""
        if not np.array_equal(self.documents, before.documents) or not np.array_equal(self.tokens, before.tokens):
            raise ValueError("a change needs the same documents with the same tokens on both sides")
        return paired_ratio(self.nll, before.nll, self.tokens, transform="exp", seed=seed)


def perplexity(
    model: LanguageModel | Engine,
    documents: Iterable[Document],
    *,
    max_length: int | None = None,
    overlap: int = 0,
    adapter: str | None = None,
    seed: int = 0,
    step: Callable[[int], None] | None = None,
) -> Perplexity:
    """The perplexity of `model` on documents.

    Every token of a text is scored once, the first one from BOS where the tokenizer has one; documents longer than
    `max_length` (None: the model's context) are cut by `windows`. Chats count where an assistant speaks, completions
    after their prompt. `seed` draws the interval, `step` is told how many documents were done.

    Raises DataError with the row for one that is none, UserError if nothing is left to score, ConfigError where
    `max_length` exceeds the model's context.
    """
    engine = model if isinstance(model, Engine) else Engine(model)
    longest = context(engine, max_length)
    sums: list[float] = []
    counts: list[int] = []
    kept: list[int] = []
    dropped = 0
    for first, chunk in _chunks(documents):
        scored = document_nll(engine, chunk, max_length=longest, overlap=overlap, adapter=adapter, first=first)
        for i, (nll, tokens) in enumerate(scored):
            if tokens:
                sums.append(nll)
                counts.append(tokens)
                kept.append(first + i)
            else:
                dropped += 1
        if step is not None:
            step(len(chunk))
    if not kept:
        raise UserError(f"none of {dropped} documents has a token to score", expected="documents that are not empty")
    nll, tokens = np.array(sums), np.array(counts, dtype=np.int64)
    return Perplexity(
        nll, tokens, np.array(kept), float(np.exp(nll.sum() / tokens.sum())), _interval(nll, tokens, seed), dropped
    )


def _interval(nll: NDArray[np.float64], tokens: NDArray[np.int64], seed: int) -> Interval:
    # The change from a model that is never surprised, whose perplexity is 1.
    change = paired_ratio(nll, np.zeros_like(nll), tokens, transform="exp", seed=seed)
    return Interval(change.low + 1, change.high + 1, change.mean + 1)


def _chunks(documents: Iterable[Document]) -> Iterator[tuple[int, list[Document]]]:
    chunk: list[Document] = []
    first = 0
    for document in documents:
        chunk.append(document)
        if len(chunk) == CHUNK:
            yield first, chunk
            first, chunk = first + CHUNK, []
    if chunk:
        yield first, chunk


def context(engine: Engine, max_length: int | None) -> int:
    """How many tokens are read at once: `max_length`, or all that the model has positions for; ConfigError beyond."""
    if max_length is not None and max_length > engine.max_length:
        raise ConfigError("max_length", max_length, f"at most the model's {engine.max_length} positions")
    return max_length or engine.max_length


def document_nll(
    engine: Engine,
    documents: Sequence[Document],
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    overlap: int = 0,
    adapter: str | None = None,
    first: int = 0,
) -> list[tuple[float, int]]:
    """(nll in nats, summed; how many tokens that are) of each document, as `perplexity` scores them.

    `max_tokens` scores the beginning of a document only; `first` is the place of the first one, for errors. All are
    held in memory at once: give some hundreds.
    """
    longest = context(engine, max_length)
    requests: list[ScoreRequest] = []
    owners: list[tuple[int, NDArray[np.bool_]]] = []
    bos = engine.tokenizer.bos_token_id
    for i, document in enumerate(documents):
        ids, counted = _encoded(document, engine.tokenizer, first + i)
        if max_tokens is not None:
            ids = ids[: max_tokens + (ids[:1] == [bos])]
        for window in windows(ids, longest, overlap=overlap, bos=bos):
            own = window.ids[window.start :]
            mask = counted[window.first : window.first + len(own)]
            if mask.any():
                requests.append(ScoreRequest(window.ids[: window.start], [own], adapter))
                owners.append((i, mask))
    totals = [(0.0, 0)] * len(documents)
    for (i, mask), (scored,) in zip(owners, engine.score(requests)):
        nll, tokens = totals[i]
        totals[i] = nll - float(np.asarray(scored.logprobs, dtype=np.float64)[mask].sum()), tokens + int(mask.sum())
    return totals


def _encoded(document: Document, tokenizer: Any, index: int) -> tuple[list[int], NDArray[np.bool_]]:
    """A document's ids and which of them count."""
    if isinstance(document, Mapping):
        if isinstance(document.get("text"), str):
            return _encoded(document["text"], tokenizer, index)
        if "messages" in document:
            found = encode_chat(document["messages"], tokenizer)
        elif "prompt" in document and "completion" in document:
            found = encode_completion(document["prompt"], document["completion"], tokenizer)
        else:
            wanted = "text, messages, or prompt and completion"
            raise DataError(
                f"found only {', '.join(map(str, document)) or 'no fields'}", row=index + 1, expected=wanted
            )
        if isinstance(found, Dropped):
            return [], np.zeros(0, dtype=bool)
        return found.ids, np.asarray(found.weights) > 0
    if isinstance(document, str):
        ids = encode_prompt(document, tokenizer) if document else []
    else:
        ids = list(document)
    return ids, np.ones(len(ids), dtype=bool)
