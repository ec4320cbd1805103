"""What a program submits: calls, each a template with its inputs and what is wanted of its outputs. Runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from maypole.core.errors import DataError
from maypole.engine.request import Sampling

Tokenize = Literal["rendered", "segment"]
"""Whether a prompt becomes tokens as one text, as a plain completion would, or piece by piece, generated tokens as they
came."""
CacheScope = Literal["call", "session", "key", "public"]
"""With whom a call may share what is computed for its prompt, and who may so notice by the time it takes that somebody
had the same text before: nobody, its session, all sessions of the same API key, or everybody."""
Criteria = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class Value:
    """An input that is a text."""

    text: str


@dataclass(frozen=True, slots=True)
class Ref:
    """An input that is a variable of the session, by its id."""

    variable: str


@dataclass(frozen=True, slots=True)
class Of:
    """An input that is an output of a call in the same submission, by that call's place in it."""

    call: int
    name: str


Given = Value | Ref | Of


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an output is drawn and what becomes of it. Without `seed` the session gives it one of its own.

    `criteria` says at once what a later ``get`` would say: how soon it is wanted.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    transforms: tuple[str, ...] = ()
    seed: int | None = None
    criteria: Criteria | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a semantic function: `name` is for people; the first of `models` that is served runs it."""

    template: str
    inputs: Mapping[str, Given] = field(default_factory=dict)
    outputs: Mapping[str, Wanted] = field(default_factory=dict)
    name: str = ""
    models: tuple[str, ...] = ()
    tokenize: Tokenize = "rendered"
    cache_scope: CacheScope = "session"


def in_order(calls: "list[Call]") -> list[int]:
    """Places of the calls such that each comes after those it takes from; DataError where there is no such order."""
    for at, call in enumerate(calls):
        for name, given in call.inputs.items():
            if isinstance(given, Of) and not (0 <= given.call < len(calls) and given.name in calls[given.call].outputs):
                what = f"there is no output {given.name!r} of a call {given.call}"
                raise DataError(what, row=at + 1, field=name, expected="an output of a call of this submission")
    left = {at: {g.call for g in call.inputs.values() if isinstance(g, Of)} for at, call in enumerate(calls)}
    taking: dict[int, list[int]] = {at: [] for at in left}
    for at, sources in left.items():
        for source in sources:
            taking[source].append(at)
    found = [at for at, sources in left.items() if not sources]
    for at in found:  # which grows meanwhile
        for later in taking[at]:
            left[later].discard(at)
            if not left[later]:
                found.append(later)
    if len(found) < len(calls):
        at = min(set(left) - set(found))
        name = next(n for n, g in calls[at].inputs.items() if isinstance(g, Of) and g.call not in found)
        raise DataError("the calls take from each other in a circle", row=at + 1, field=name, expected="no circle")
    return found
