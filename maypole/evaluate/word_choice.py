"""A question that a language model answers by one of a few words: their log-probs are read, nothing is generated.

What questions begin with in common is computed once. Knows nothing about what is asked.
"""

from collections.abc import Sequence

import numpy as np

from maypole.core.errors import UserError
from maypole.core.identity import digest
from maypole.engine import Engine, ScoreRequest
from maypole.evaluate.fact_cache import FactCache, computed

ENDING = "Answer:"
"""How every question ends; the words that may follow are told by what they add to it."""


def word_choice(
    engine: Engine, questions: Sequence[str], words: Sequence[str], cache: FactCache | None = None
) -> np.ndarray:
    """(questions, words): log p of each of `words` after each question, equal questions read once.

    A model without a fingerprint is asked anew, whatever the cache holds.
    """
    name = model_name(engine)
    keys = [digest("words", name or "", question, *words) for question in questions]

    def ask(places: list[int]) -> list[list[float]]:
        answers = _continuations(engine, words)
        prompts = [_encoded(engine, questions[i], max(map(len, answers))) for i in places]
        scored = engine.score([ScoreRequest(prompt, answers) for prompt in prompts])
        return [[one.sum for one in some] for some in scored]

    if cache is not None and name is not None:
        found = cache.remember(keys, ask)
    else:
        known = computed(keys, ask)
        found = [known[key] for key in keys]
    return np.array(found, dtype=np.float64).reshape(len(questions), len(words))


def model_name(engine: Engine) -> str | None:
    """What an engine's answers depend on, None where its weights have no fingerprint."""
    lm = engine.lm
    return f"{lm.fingerprint} {lm.dtype}" if lm.fingerprint else None


def _continuations(engine: Engine, words: Sequence[str]) -> list[list[int]]:
    """The ids that each word adds to a question."""

    def ids_of(text: str) -> list[int]:
        return list(engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    before = ids_of(ENDING)
    found: list[list[int]] = []
    for word in words:
        after = ids_of(f"{ENDING} {word}")
        if after[: len(before)] != before:
            raise UserError(f"the tokenizer joins {ENDING!r} and {word!r} into one token", engine.lm.name)
        found.append(after[len(before) :])
    if len(set(map(tuple, found))) < len(words):
        raise UserError(f"the tokenizer knows no difference between {', '.join(words)}", engine.lm.name)
    return found


def _encoded(engine: Engine, question: str, room: int) -> list[int]:
    assert question.endswith(ENDING)
    ids = engine.encode(question)
    if len(ids) + room - 1 > engine.max_length:
        what = f"a question of {len(ids):,} tokens does not fit the context of {engine.max_length:,}"
        raise UserError(what, engine.lm.name, f"shorter texts or passages; it begins {question[:60]!r}")
    return ids
