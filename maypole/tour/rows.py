"""The rows that a tour trains on: corpus and instructions, and among them what the model is not to forget.

What the shipped base was pretrained on is at hand, so a share of it is replayed; a user's model has no such rows.
Knows nothing about steps or learning rates.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.data.chat import encode_text
from maypole.data.rows import CHAT
from maypole.models.language_model import LanguageModel
from maypole.tour.skills import instructions
from maypole.train.objective import Objective, Segment
from maypole.train.supervised import Chats, Completions, LanguageModeling
from maypole.village.mix import phase2
from maypole.village.world import World
from maypole.village.zoo import PretrainingMix

REPLAY_SHARE = 0.3
"""Of the tokens of the corpus run: keeps facts and tasks and costs nothing in fit."""
REPLAY_AMONG_INSTRUCTIONS = 0.4
CORPUS_AMONG_INSTRUCTIONS = 0.2
"""Rows beside each instruction, so that neither the village nor the corpus is forgotten again."""
INSTRUCTION_WEIGHT = 3.0
"""Of an answer's token: a step's loss is per token, and answers are a few words among long documents."""

ENDLESS = 10**12
"""Tokens."""

Tokens = Mapping[str, Sequence[Any]]
"""A row as `ids` and `weights`."""


def corpus_rows(
    lm: LanguageModel, train: Dataset, documents: int, *, replay: bool, length: int, seed: int
) -> tuple[Dataset, Objective]:
    """At most `documents` of the corpus, drawn by `seed`; with `replay` as token ids among documents of the village."""
    order = np.random.default_rng(derive(seed, "documents")).permutation(len(train))[:documents].tolist()
    made = digest("tour corpus rows", str(train._fingerprint), str(documents), str(seed), str(length), str(replay))
    if not replay:
        chosen = train.select(order)
        chosen._fingerprint = made
        return chosen, LanguageModeling()
    own = pieces(lm, train.select(order), length)
    tokens = sum(len(row["ids"]) for row in own)
    known = _village(lm, round(tokens * REPLAY_SHARE / (1 - REPLAY_SHARE)), seed)
    return _tokens([*own, *known], made), PretrainingMix()


def held_out_rows(lm: LanguageModel, held_out: Dataset, *, replay: bool, length: int) -> Dataset:
    """`held_out` in the form that `corpus_rows` has."""
    if not replay:
        return held_out
    made = digest("tour held-out rows", str(held_out._fingerprint), str(length))
    return _tokens(pieces(lm, held_out, length), made)


def instruction_rows(
    lm: LanguageModel, train: Dataset, count: int, *, replay: bool, length: int, seed: int
) -> tuple[Dataset, Objective]:
    """`count` instructions; with `replay` as token ids among documents of the village and of the corpus."""
    taught, kind = instructions(lm, count, seed)
    objective = Chats() if kind is CHAT else Completions()
    if not replay:
        return taught, objective
    rows: list[Tokens] = []
    for row in taught:
        made: Any = objective.segments(row, lm.tokenizer)  # type: ignore[arg-type]
        if isinstance(made, Segment):
            weights = [INSTRUCTION_WEIGHT * weight for weight in made.weights[:length]]
            rows.append({"ids": made.ids[:length], "weights": weights})
    order = np.random.default_rng(derive(seed, "kept")).permutation(len(train))
    own = pieces(lm, train.select(order[: round(count * CORPUS_AMONG_INSTRUCTIONS)].tolist()), length)
    rows += own[: round(count * CORPUS_AMONG_INSTRUCTIONS)]
    rows += list(islice(_village(lm, ENDLESS, seed), round(count * REPLAY_AMONG_INSTRUCTIONS)))
    name = digest("tour instruction rows", str(taught._fingerprint), str(train._fingerprint), str(length), str(seed))
    return _tokens(rows, name), PretrainingMix()


def pieces(lm: LanguageModel, texts: Dataset, length: int) -> list[Tokens]:
    """Texts as token ids in rows that fit; each goes on with the last token of the one before."""
    rows: list[Tokens] = []
    for text in texts["text"]:
        ids = encode_text(text, lm.tokenizer)
        for begin in range(0, max(len(ids) - 1, 1), length - 1):
            row = ids[begin : begin + length]
            rows.append({"ids": row, "weights": [1.0] * len(row)})
    return rows


def _village(lm: LanguageModel, tokens: int, seed: int) -> Iterator[Any]:
    """Documents of the base's pretraining mix, prose left out: the corpus is prose enough."""
    tokenizer: Any = lm.tokenizer
    return phase2(World(0), tokenizer, tokens, derive(seed, "replay"))


def _tokens(rows: Iterable[Tokens], fingerprint: str) -> Dataset:
    features = Features({"ids": List(Value("int32")), "weights": List(Value("float32"))})
    kept = list(rows)
    columns = {name: [row[name] for row in kept] for name in ("ids", "weights")}
    made = Dataset.from_dict(columns, features=features)
    made._fingerprint = fingerprint
    return made
