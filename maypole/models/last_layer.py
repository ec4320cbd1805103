"""The last layer computes keys and values of every token, and all else only of those whose states are read.

Of a prompt nobody asks what the last layer makes of it, only what later tokens see of it there. The layer's own forward
runs twice: over the tokens that are not read, until its attention has their keys and values, then over the others.
Knows nothing about which are read, and why: the plan says it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from maypole.models.instead import forwards
from maypole.models.packing import PackedPlan, Reading
from maypole.models.plan import AttentionSpec, attention_plan, current_plan

PROVEN = "_maypole_reads_in_part"
"""On a model that was seen to give the same in this way."""


@contextmanager
def last_layer_in_part(lm: nn.Module) -> Iterator[None]:
    """Where the plan in force says what is read, the last layer of `lm` gives the states of that and zeros elsewhere.

    Only of a model on which `PROVEN` is set.
    """
    kinds: Any = getattr(lm, "_no_split_modules", None) or ()
    layers = [module for module in lm.modules() if type(module).__name__ in kinds] if hasattr(lm, PROVEN) else []
    with forwards({layer: functools.partial(_forward, layer.forward) for layer in layers[-1:]}):
        yield


def _forward(forward: Callable[..., Any], hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    plan = current_plan()
    reading = plan.reading if isinstance(plan, PackedPlan) else None
    if reading is None:
        return forward(hidden, *args, **kwargs)
    rest = _Rest()
    with suppress(_Enough), attention_plan(rest):
        _at(reading.rest, forward, hidden, args, kwargs)
    with attention_plan(_Kept(reading, rest)):
        found = _at(reading.kept, forward, hidden, args, kwargs)
    state = found[0] if isinstance(found, tuple) else found
    whole = torch.zeros_like(hidden, dtype=state.dtype).index_copy(1, reading.kept, state)
    return (whole, *found[1:]) if isinstance(found, tuple) else whole


def _at(slots: torch.Tensor, forward: Callable[..., Any], hidden: torch.Tensor, args: Any, kwargs: Any) -> Any:
    """`forward` of some of the tokens: of all that has one entry a token, (1, tokens, …), their entries."""
    tokens = hidden.shape[1]

    def some(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.ndim > 1 and x.shape[:2] == (1, tokens):
            return x.index_select(1, slots)
        return tuple(map(some, x)) if isinstance(x, tuple) else x

    return forward(some(hidden), *map(some, args), **{name: some(x) for name, x in kwargs.items()})


class _Enough(Exception):
    """Keys and values are known."""


@dataclass(slots=True)
class _Rest:
    """The plan of the tokens that are not read: nobody asks."""

    seen: list[torch.Tensor] = field(default_factory=list)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        self.seen = [key, value]
        raise _Enough


@dataclass(frozen=True, slots=True)
class _Kept:
    """The plan of those that are read: they see the others too."""

    reading: Reading
    rest: _Rest

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        both = zip((key, value), self.rest.seen, strict=True)
        key, value = (torch.cat(parts).index_select(0, self.reading.place) for parts in both)
        return self.reading.attend(query, key, value, spec)
