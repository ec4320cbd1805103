"""Templates: text with holes, some filled before a completion and some by it. Knows no engine and no session.

A hole is a name in double braces, `{{name}}`; whether it is an input or an output is for the call to say. What a call
asks of a model is cut at its outputs into chains: text and inputs, then one completion (arXiv 2405.19888, section 4).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from maypole.core.errors import DataError

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_HOLE = re.compile(r"\{\{([^{}]*)\}\}")


@dataclass(frozen=True, slots=True)
class Text:
    """What stands in the template itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Hole:
    """The place of a variable."""

    name: str


Piece = Text | Hole


@dataclass(frozen=True, slots=True)
class Chain:
    """Text and inputs, then the output that continues them and everything before them in the call."""

    fills: tuple[Piece, ...]
    output: str


def parse(template: str) -> tuple[Piece, ...]:
    """Text and holes in turn; DataError where something in double braces is no name.

    >>> parse("Sum up {{text}}: {{summary}}")
    (Text(text='Sum up '), Hole(name='text'), Text(text=': '), Hole(name='summary'))
    """
    pieces: list[Piece] = []
    at = 0
    for found in _HOLE.finditer(template):
        if not re.fullmatch(NAME, found[1]):
            what = f"{found[0][:80]!r} is no hole"
            raise DataError(what, field="template", expected="{{name}}: letters, digits and _; other braces as a value")
        if found.start() > at:
            pieces.append(Text(template[at : found.start()]))
        pieces.append(Hole(found[1]))
        at = found.end()
    if at < len(template):
        pieces.append(Text(template[at:]))
    return tuple(pieces)


def chains(pieces: Collection[Piece], inputs: Collection[str], outputs: Collection[str]) -> tuple[Chain, ...]:
    """One chain an output, in the template's order; what follows the last output is left out.

    DataError names the hole or parameter where holes and parameters do not belong together.
    """
    made: list[Chain] = []
    fills: list[Piece] = []
    holes = {piece.name for piece in pieces if isinstance(piece, Hole)}
    for name in [*inputs, *outputs]:
        if name not in holes:
            raise DataError("the template has no such hole", field=name, expected=f"{{{{{name}}}}} in the template")
        if name in inputs and name in outputs:
            raise DataError("is an input and an output", field=name, expected="one of both")
    for piece in pieces:
        if isinstance(piece, Text) or piece.name in inputs:
            fills.append(piece)
            continue
        if piece.name not in outputs:
            raise DataError("nothing is said of this hole", field=piece.name, expected="an input or an output")
        if piece.name in {chain.output for chain in made}:
            raise DataError("an output stands in the template twice", field=piece.name, expected="one place")
        if not fills:
            where = "follows another output at once" if made else "has nothing before it"
            raise DataError(f"the output {where}", field=piece.name, expected="text or an input before it")
        made.append(Chain(tuple(fills), piece.name))
        fills = []
    if not made:
        raise DataError("the template has no output", field="template", expected="a hole that the model fills")
    return tuple(made)
