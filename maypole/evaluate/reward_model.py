"""A model with a score head as a Reward: one number for each text of prompt and completion.

Knows nothing about how it was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from maypole.core.errors import DataError, JudgeError
from maypole.core.identity import digest
from maypole.data.chat import encode_whole
from maypole.engine import Engine, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RewardModel:
    """`engine` runs a model of one label. Strings are joined as they are, messages by the tokenizer's template.

    All texts of a call are read together, packed, and what they begin with in common (a prompt with several answers)
    once. A text that is longer than the model's context is a JudgeError: its end is where the score is read.
    """

    engine: Engine

    def __call__(self, prompts: list, completions: list, **columns: list) -> list[float | None]:
        pairs = list(zip(prompts, completions, strict=True))
        texts = readable(pairs, lambda pair: encode_whole(*pair, self.engine.tokenizer), self.engine.max_length)
        scores = self.engine.classify([Request(text) for text in texts]) if texts else []
        return [float(score) for (score,) in scores]

    @property
    def fingerprint(self) -> str | None:
        known = self.engine.lm.fingerprint
        return digest("reward model", known) if known else None


def readable(rows: Sequence[T], encode: Callable[[T], list[int]], longest: int) -> list[list[int]]:
    """The ids of each row; JudgeError names the first that a model with a context of `longest` cannot read whole."""
    found: list[list[int]] = []
    for number, row in enumerate(rows, start=1):
        try:
            ids = encode(row)
        except DataError as error:
            raise JudgeError(error.what, f"row {number}", error.expected) from error
        if not ids:
            raise JudgeError("there is nothing to read", f"row {number}", "a prompt or a completion")
        if len(ids) > longest:
            what = f"prompt and completion have {len(ids):,} tokens"
            raise JudgeError(what, f"row {number}", f"at most {longest:,}, the context of the model that judges")
        found.append(ids)
    return found
