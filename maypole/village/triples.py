"""The world as a graph: all facts as triples, kinship closed under its inverses. Knows no text."""

from collections.abc import Iterator

from maypole.village.world import World

INVERSE = {"spouse": "spouse", "sibling": "sibling", "mother": "child", "father": "child"}


def triples(world: World, told_only: bool = False) -> Iterator[dict]:
    """{subject, relation, object} of every fact and of every inverse of kinship that is no fact, in fixed order."""
    facts = [fact for fact in world.facts if not told_only or world.told(fact)]
    known = dict.fromkeys(tuple(fact) for fact in facts)
    for fact in facts:
        if fact.relation in INVERSE:
            known.setdefault((fact.object, INVERSE[fact.relation], fact.subject))
    for subject, relation, value in known:
        yield {"subject": subject, "relation": relation, "object": value}
