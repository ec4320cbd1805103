"""What the village's models are pretrained on: kinds of rows by token share, as token ids with loss weights.

Phase 1 teaches copying, phase 2 everything. The loss is 1 on texts and answers, 0.1 on what users say, 0 on bos and
on the assistant mark. Each row is one document of at most 256 tokens; nothing is packed. Knows no model.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypedDict

from maypole.core.seeds import derive
from maypole.village.draws import Draws
from maypole.village.instruct import COPY_LIKE
from maypole.village.render import render
from maypole.village.tokenizer import ASSISTANT, BOS, END, EOS, USER
from maypole.village.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Document(TypedDict):
    """`ids` starts with bos; `weights[i]` is the loss weight of predicting `ids[i]` (0 for bos)."""

    kind: str
    ids: list[int]
    weights: list[float]


MAX_TOKENS = 256
USER_WEIGHT = 0.1
MIX: dict[str, float] = {
    "page": 0.20, "facts": 0.12, "ledger": 0.06, "qa": 0.09, "hop2": 0.055, "hop3": 0.035, "instruct": 0.29,
    "story": 0.03, "calendar": 0.015, "web": 0.06, "icl": 0.03, "rep": 0.015,
}  # fmt: skip
PHASE_1: dict[str, float] = {"instruct": 0.70, "rep": 0.15, "page": 0.15}
PROSE_SHARE = 0.35
PROSE_PIECE = 900
CHUNK = 256
ENDLESS = 10**12
"""Tokens: more than any training reads."""


def _encode(tokenizer: "PreTrainedTokenizerFast", kind: str, rows: list[dict]) -> Iterator[Document]:
    """Rows as documents; all texts of the chunk are encoded at once."""
    texts: list[str] = []
    for row in rows:
        texts += [f" {turn['content']}" for turn in row["messages"]] if "messages" in row else [row["text"]]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    bos, eos, user, assistant, end = (tokenizer.vocab[token] for token in (BOS, EOS, USER, ASSISTANT, END))
    for row in rows:
        ids, weights = [bos], [0.0]
        if "messages" in row:
            for turn in row["messages"]:
                piece = next(encoded).ids
                said = turn["role"] == "assistant"
                ids += [assistant if said else user, *piece, end]
                weights += [0.0 if said else USER_WEIGHT] + [1.0 if said else USER_WEIGHT] * (len(piece) + 1)
        else:
            piece = next(encoded).ids
            ids += [*piece, eos]
            weights += [1.0] * (len(piece) + 1)
        yield {"kind": kind, "ids": ids[:MAX_TOKENS], "weights": weights[:MAX_TOKENS]}


def documents(
    world: World, tokenizer: "PreTrainedTokenizerFast", kind: str, seed: int, **knobs: object
) -> Iterator[Document]:
    """Rows of one kind as documents, without end."""
    start = 0
    while True:
        rows = list(render(world, kind, CHUNK, seed, start=start, **knobs))
        yield from _encode(tokenizer, kind, rows)
        start += CHUNK


def pieces(texts: Iterable[str], size: int = PROSE_PIECE) -> Iterator[str]:
    """Texts cut into pieces of at most `size` characters, at white space where there is some."""
    for text in texts:
        while len(text) > size:
            cut = max(text.rfind(" ", size // 2, size), text.rfind("\n", size // 2, size))
            cut = cut if cut > 0 else size
            yield text[:cut]
            text = text[cut:].lstrip()
        if text:
            yield text


def prose_documents(
    tokenizer: "PreTrainedTokenizerFast", prose: Iterable[tuple[str, str]], seed: int
) -> Iterator[Document]:
    """Pieces of (name, text) in an order drawn from `seed`, again and again; texts that spell a special token are
    left out."""
    texts = [text for _, text in prose if "<|" not in text]
    order = Draws(seed, "prose").shuffled(list(pieces(texts)))
    while order:
        for start in range(0, len(order), CHUNK):
            yield from _encode(tokenizer, "prose", [{"text": text} for text in order[start : start + CHUNK]])


def interleave(streams: Mapping[str, tuple[float, Iterator[Document]]], tokens: int) -> Iterator[Document]:
    """Documents until `tokens` are out, each from the stream that lags furthest behind its share of the tokens."""
    shares = {name: share for name, (share, _) in streams.items()}
    scale = sum(shares.values())
    emitted, total = dict.fromkeys(streams, 0), 0
    while total < tokens:
        name = max(shares, key=lambda n: shares[n] / scale * total - emitted[n])
        document = next(streams[name][1])
        emitted[name] += len(document["ids"])
        total += len(document["ids"])
        yield document


def until(tokens: int, documents: Iterator[Document]) -> Iterator[Document]:
    """The next documents of a stream, until `tokens` are out."""
    return interleave({"": (1.0, documents)}, tokens)


def among(documents: Iterator[Document], others: Iterator[Document], share: float) -> Iterator[Document]:
    """All `documents` in their order, and between them so many of `others` that these have `share` of the tokens."""
    told = total = 0
    for document in documents:
        yield document
        total += len(document["ids"])
        while told < share * total:
            other = next(others)
            told += len(other["ids"])
            total += len(other["ids"])
            yield other


def _streams(
    world: World, tokenizer: "PreTrainedTokenizerFast", shares: Mapping[str, float], seed: int, **knobs: dict
) -> dict[str, tuple[float, Iterator[Document]]]:
    return {
        kind: (share, documents(world, tokenizer, kind, seed, **knobs.get(kind, {}))) for kind, share in shares.items()
    }


def phase1(world: World, tokenizer: "PreTrainedTokenizerFast", tokens: int, seed: int = 0) -> Iterator[Document]:
    """Copying first: ten list tasks, repeated words, pages (70, 15 and 15 % of the tokens)."""
    knobs = {"instruct": {"tasks": COPY_LIKE}}
    yield from interleave(_streams(world, tokenizer, PHASE_1, derive(seed, "phase 1"), **knobs), tokens)


def phase2(world: World, tokenizer: "PreTrainedTokenizerFast", tokens: int, seed: int = 0) -> Iterator[Document]:
    """The whole mix, by the shares of `MIX`."""
    knobs = {"web": {"preset": "base"}}
    yield from interleave(_streams(world, tokenizer, MIX, derive(seed, "phase 2"), **knobs), tokens)


def base_mix(
    world: World,
    tokenizer: "PreTrainedTokenizerFast",
    tokens: int,
    seed: int = 0,
    prose: Iterable[tuple[str, str]] = (),
    prose_share: float = PROSE_SHARE,
) -> Iterator[Document]:
    """The mix with real prose for `prose_share` of the tokens, for the base that is adapted to real text. Without
    prose it is `phase2`."""
    knobs = {"web": {"preset": "base"}}
    streams = _streams(world, tokenizer, MIX, derive(seed, "phase 2"), **knobs)
    real = prose_documents(tokenizer, prose, derive(seed, "prose"))
    first = next(real, None)
    if first is not None:
        streams = {kind: (share * (1 - prose_share), stream) for kind, (share, stream) in streams.items()}
        streams["prose"] = (prose_share, _again(first, real))
    yield from interleave(streams, tokens)


def _again(first: Document, rest: Iterator[Document]) -> Iterator[Document]:
    yield first
    yield from rest
