"""The village's rows are valid as the rows that rooms read."""

import pytest

from maypole.data.rows import CHAT, COMPLETION, EDIT, PAIR, QA, TEXT, TRIPLE, RowType
from maypole.village.render import KINDS, render
from maypole.village.triples import triples
from maypole.village.world import World

WORLD = World(0)
TYPES: dict[str, tuple[RowType, ...]] = {
    **dict.fromkeys(("page", "facts", "ledger", "calendar", "topic", "rep", "web"), (TEXT,)),
    **dict.fromkeys(("qa", "hop2", "hop3", "instruct"), (CHAT, QA)),
    **dict.fromkeys(("story", "icl"), (TEXT, QA)),
    "describe": (COMPLETION,),
    "edits": (EDIT,),
    "chats": (CHAT,),
}


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_valid_as_the_rows_that_rooms_read(kind: str) -> None:
    for made in render(WORLD, kind, 500, seed=1):
        for row_type in TYPES[kind]:
            row_type.check(made)


def test_every_kind_is_checked_and_pairs_and_triples_are_valid_too() -> None:
    assert set(TYPES) == set(KINDS)
    for made in render(WORLD, "describe", 300, form="pairs"):
        PAIR.check(made)
    for made in triples(WORLD):
        TRIPLE.check(made)
