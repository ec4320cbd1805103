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
from maypole.tour.plan import BESIDE_FORM
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
FORM_WITH_REPLAY = {"instructions": 0.2, "corpus": 0.2, "village": 0.6}
FORM_WITHOUT = {"instructions": 0.6, "corpus": 0.4, "village": 0.0}
"""Shares of the rows that stand beside answers which show a form: what it unsettles most is the village."""

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
    rows = _answers(lm, taught, objective, length)
    rows += _some(lm, train, round(count * CORPUS_AMONG_INSTRUCTIONS), length, seed)
    rows += list(islice(_village(lm, ENDLESS, seed), round(count * REPLAY_AMONG_INSTRUCTIONS)))
    name = digest("tour instruction rows", str(taught._fingerprint), str(train._fingerprint), str(length), str(seed))
    return _tokens(rows, name), PretrainingMix()


def form_rows(
    lm: LanguageModel, train: Dataset, shown: Sequence[Mapping[str, str]], *, replay: bool, length: int, seed: int
) -> tuple[Dataset, Objective]:
    """The answers of `shown`, rows of prompt and completion, and for each of them BESIDE_FORM rows of what stage 2
    taught; with `replay` documents of the village among these."""
    rows = _answers(lm, shown, Completions(), length)
    shares = FORM_WITH_REPLAY if replay else FORM_WITHOUT
    kept = {name: round(share * BESIDE_FORM * len(shown)) for name, share in shares.items()}
    taught, kind = instructions(lm, kept["instructions"], derive(seed, "form"))
    rows += _answers(lm, taught, Chats() if kind is CHAT else Completions(), length)
    rows += _some(lm, train, kept["corpus"], length, seed)
    rows += list(islice(_village(lm, ENDLESS, derive(seed, "form")), kept["village"]))
    said = [text for row in shown for text in (row["prompt"], row["completion"])]
    name = digest("tour form rows", *said, str(train._fingerprint), str(replay), str(length), str(seed))
    return _tokens(rows, name), PretrainingMix()


def _answers(
    lm: LanguageModel, rows: Dataset | Sequence[Mapping[str, str]], objective: Chats | Completions, length: int
) -> list[Tokens]:
    """Rows with an answer as token ids; those that have none left are missing."""
    made = (objective.segments(dict(row), lm.tokenizer) for row in rows)
    return [
        {"ids": one.ids[:length], "weights": [INSTRUCTION_WEIGHT * weight for weight in one.weights[:length]]}
        for one in made
        if isinstance(one, Segment)
    ]


def _some(lm: LanguageModel, train: Dataset, count: int, length: int, seed: int) -> list[Tokens]:
    """`count` rows of the corpus."""
    order = np.random.default_rng(derive(seed, "kept")).permutation(len(train))
    return pieces(lm, train.select(order[:count].tolist()), length)[:count]


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
