"""The world's size and the laws of its facts."""

import pytest

from maypole.core.errors import ConfigError
from maypole.village.names import NOUNS, POOLS, all_words
from maypole.village.render import KINDS, render, row
from maypole.village.triples import INVERSE, triples
from maypole.village.world import PERSON_RELATIONS, World

WORLD = World(0)


def test_the_default_world_has_320_people_and_3960_facts() -> None:
    assert len(WORLD.people) == len(WORLD.by_name) == 320
    assert (len(WORLD.head), len(WORLD.tail), len(WORLD.strangers)) == (192, 64, 64)
    sizes = {"head": 0, "tail": 0, "stranger": 0, "place": 0}
    for fact in WORLD.facts:
        person = WORLD.by_name.get(fact.subject)
        sizes[person.group if person else "place"] += 1
    assert sizes == {"head": 2304, "tail": 768, "stranger": 768, "place": 120}
    assert len(WORLD.facts) == len(WORLD.lookup) == 3960


def test_other_sizes_are_other_worlds_and_wrong_sizes_say_what_works() -> None:
    assert len(World(3, families=15, tail=0, strangers=0).people) == 60
    assert World(0).facts == WORLD.facts != World(1).facts
    with pytest.raises(ConfigError, match="at most 96"):
        World(0, families=80)
    with pytest.raises(ConfigError, match="0 or at least 2"):
        World(0, tail=1)
    with pytest.raises(ConfigError, match="accepted: at least 2"):
        World(0, families=0)


def test_a_world_without_tail_and_strangers_renders_every_kind() -> None:
    small = World(3, families=4, tail=0, strangers=0)
    for kind in KINDS:
        assert len(list(render(small, kind, 60, seed=1))) == 60
    with pytest.raises(ConfigError, match="accepted: head"):
        row(small, "edits", 0, group="stranger")


@pytest.mark.parametrize("relation", ["spouse", "sibling"])
def test_spouse_and_sibling_are_symmetric(relation: str) -> None:
    pairs = {(f.subject, f.object) for f in WORLD.facts if f.relation == relation}
    assert {(b, a) for a, b in pairs} == pairs
    assert all(WORLD.by_name[a].last == WORLD.by_name[b].last for a, b in pairs)


def test_siblings_have_the_same_mother_and_father_who_are_married() -> None:
    for person in WORLD.people:
        if person.role == "child":
            assert WORLD.value(person.name, "mother") == WORLD.value(person.name, "sibling", "mother")
            assert WORLD.value(person.name, "father") == WORLD.value(person.name, "sibling", "father")
            assert WORLD.value(person.name, "mother", "spouse") == WORLD.value(person.name, "father")
            assert WORLD.value(person.name, "spouse") is None


def test_friends_and_teachers_are_of_the_own_group_and_another_family() -> None:
    for person in WORLD.people:
        for relation in ("friend", "teacher"):
            other = WORLD.by_name[WORLD.lookup[person.name, relation]]
            assert other.group == person.group
            assert other.family != person.family


def test_tools_and_jobs_are_one_to_one() -> None:
    tools = [fact.object for fact in WORLD.facts if fact.relation == "tool"]
    assert len(tools) == len(set(tools)) == 24


def test_tail_people_are_told_in_part_and_strangers_not_at_all() -> None:
    told = [fact for person in WORLD.tail for fact in WORLD.told_of.get(person.name, [])]
    assert 0.3 < len(told) / 768 < 0.45
    assert all(person.name not in WORLD.told_of for person in WORLD.strangers)


def test_a_tenth_of_the_pairs_and_an_eighth_of_the_people_are_held_out() -> None:
    pairs = [(p.name, r) for p in WORLD.head for r in PERSON_RELATIONS if (p.name, r) in WORLD.lookup]
    assert 0.07 < sum(WORLD.held_pair(*pair) for pair in pairs) / len(pairs) < 0.13
    held = [person for person in WORLD.head if person.held_person]
    assert len(held) == 24
    assert {person.role for person in held} == {"father", "mother", "child"}


def test_words_are_all_different_and_the_noun_pools_hold_111() -> None:
    assert len(NOUNS) == len(set(NOUNS)) == 111
    assert {kind: len(pool) for kind, pool in POOLS.items()} == {
        "animal": 16, "food": 24, "thing": 24, "colour": 7, "tool": 24, "instrument": 16,
    }  # fmt: skip
    words = all_words()
    assert len(words) == len(set(words)) == 484


def test_triples_hold_every_fact_and_the_inverse_of_every_kinship() -> None:
    rows = list(triples(WORLD))
    graph = {(row["subject"], row["relation"], row["object"]) for row in rows}
    assert len(graph) == len(rows)
    assert graph >= set(map(tuple, WORLD.facts))
    for subject, relation, value in graph:
        if relation in INVERSE:
            assert (value, INVERSE[relation], subject) in graph
    children = {(s, o) for s, r, o in graph if r == "child"}
    assert len(children) == 2 * 160
    told = list(triples(WORLD, told_only=True))
    strangers = {person.name for person in WORLD.strangers}
    assert not any(row["subject"] in strangers for row in told)
