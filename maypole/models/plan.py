"""The plan in force: who sees whom among the packed tokens of a forward pass. Knows nothing of how it is followed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer asks of attention besides q, k and v."""

    layer: int
    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0


class Plan(Protocol):
    """Who sees whom among the packed tokens of one forward pass."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (tokens, heads, d), key and value: (tokens, kv_heads, d) -> (tokens, heads, d)."""
        ...


_PLAN: ContextVar[Plan | None] = ContextVar("maypole_attention_plan", default=None)


def current_plan() -> Plan | None:
    return _PLAN.get()


@contextmanager
def attention_plan(plan: Plan | None) -> Iterator[None]:
    """Every forward inside follows `plan`: ``with attention_plan(plan): model(...)``."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)
