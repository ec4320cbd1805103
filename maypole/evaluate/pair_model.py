"""A language model as a Preference: asked which of two answers is better, in both orders.

Knows nothing about how it was trained.
"""

from dataclasses import dataclass

import numpy as np

from maypole.core.identity import digest, identity
from maypole.data.chat import Talk
from maypole.data.pair_question import PairQuestion
from maypole.engine import Engine, ScoreRequest
from maypole.evaluate.reward_model import readable


@dataclass(frozen=True, slots=True)
class PairModel:
    """P(a beats b) = ½ (σ(z_A - z_B | a first) + σ(z_B - z_A | b first)), z the letters' logits (2405.07863, sec. 2.1).

    So P(a, b) + P(b, a) = 1, and of equal answers none is better. The questions of a call are read together, packed;
    those about one prompt read it once.
    """

    engine: Engine
    question: PairQuestion

    both_orders = True
    """What `core.judge.symmetric` need not ask for again."""

    def __call__(self, prompts: list, a: list, b: list, **columns: list) -> list[float | None]:
        found, n = self._first_is_better(list(zip(prompts, a, b, strict=True))), len(prompts)
        return ((found[:n] + (1 - found[n:])) / 2).tolist()

    @property
    def fingerprint(self) -> str | None:
        known, question = self.engine.lm.fingerprint, identity(self.question)
        return digest("pair model", known, question) if known and question else None

    def _first_is_better(self, pairs: list[tuple[Talk, Talk, Talk]]) -> np.ndarray:
        """σ(z_A - z_B) of each pair, then of each with its answers exchanged: (2 pairs,).

        What is asked twice is answered once, so that equal questions have equal answers.
        """
        engine, encode = self.engine, self.question.encode
        letters: list[tuple[int, int]] = []

        def ids_of(row: tuple[Talk, Talk, Talk]) -> list[int]:
            ids, two = encode(*row, engine.tokenizer)
            letters.append(two)
            return ids

        rows = [*pairs, *((prompt, b, a) for prompt, a, b in pairs)]
        asked = [(tuple(ids), two) for ids, two in zip(readable(rows, ids_of, engine.max_length), letters)]
        once = list(dict.fromkeys(asked))
        scored = engine.score([ScoreRequest(list(ids), [[letter] for letter in two]) for ids, two in once])
        ahead = np.array([first.sum - second.sum for first, second in scored], dtype=np.float64)
        known = dict(zip(once, np.exp(-np.logaddexp(0.0, -ahead))))
        return np.array([known[question] for question in asked])
