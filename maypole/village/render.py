"""One door to every kind of row: a stream, or row i by itself. Row i depends on (seed, kind, i) and the knobs only.

Knows the list of kinds; what a kind says stands in its own module.
"""

from collections.abc import Callable, Iterator
from functools import partial

from maypole.core.errors import ConfigError
from maypole.village.chats import chats
from maypole.village.describe import describe
from maypole.village.draws import Draws
from maypole.village.edits import edits
from maypole.village.instruct import icl, instruct
from maypole.village.pages import calendar, facts, ledger, page, rep, topic
from maypole.village.questions import hop, qa
from maypole.village.stories import story
from maypole.village.web import web
from maypole.village.world import World

Renderer = Callable[..., dict]
KINDS: dict[str, Renderer] = {
    "page": page,
    "facts": facts,
    "ledger": ledger,
    "calendar": calendar,
    "topic": topic,
    "rep": rep,
    "web": web,
    "qa": qa,
    "hop2": partial(hop, hops=2),
    "hop3": partial(hop, hops=3),
    "story": story,
    "instruct": instruct,
    "icl": icl,
    "describe": describe,
    "edits": edits,
    "chats": chats,
}
"""Every kind that is drawn at random; "triples" is the list of all facts (`maypole.village.triples`)."""


def row(world: World, kind: str, index: int, seed: int = 0, **knobs: object) -> dict:
    """Row `index` of a kind, made by itself.

    Knobs are those of the kind's renderer, e.g. `preset=` of "web", `split=` and `steps=` of "hop2", `tasks=` and
    `phrasing=` of "instruct", `form=` and `judge=` of "describe".
    """
    if kind not in KINDS:
        raise ConfigError("kind", kind, KINDS)
    return KINDS[kind](world, Draws(seed, kind, index), **knobs)


def render(world: World, kind: str, n: int, seed: int = 0, start: int = 0, **knobs: object) -> Iterator[dict]:
    """Rows `start` to `start + n` of a kind, streamed; equal to `row` at each index."""
    if kind not in KINDS:
        raise ConfigError("kind", kind, KINDS)
    make = KINDS[kind]
    for index in range(start, start + n):
        yield make(world, Draws(seed, kind, index), **knobs)
