"""What the beginnings of prompts are known by: a hash of their token ids at every border of a template's pieces.

Equal keys mean equal tokens for the same model, adapter and tokenizer, and among those who may know of each other
(arXiv 2405.19888, section 5.3; there the keys are those of variables, so that equal texts are not found to be equal).
Knows no engine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEAST = 16
"""Tokens from which on a beginning is worth being known."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """A beginning of a prompt: its key, and how many tokens it has."""

    key: bytes
    tokens: int


class Keys:
    """Keys of prompts that share everything that changes what tokens mean or who may share them."""

    def __init__(self, model: str, adapter: str | None, tokenizer: str, salt: str | None) -> None:
        self._begin = hashlib.blake2b(repr((model, adapter, tokenizer, salt)).encode(), digest_size=16)

    def at(self, ids: ArrayLike, ends: Sequence[int]) -> tuple[Boundary, ...]:
        """The beginnings of `ids` that end at `ends`, ascending; each token is hashed once."""
        state, found, at = self._begin.copy(), [], 0
        packed = np.asarray(ids, dtype="<u4")
        for end in ends:
            state.update(packed[at:end].tobytes())
            at = end
            if end >= LEAST and (not found or found[-1].tokens < end):
                found.append(Boundary(state.digest(), end))
        return tuple(found)
