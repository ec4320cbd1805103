"""The world: families, people, places and jobs, and every fact about them as a triple. Texts are made elsewhere.

Head people are known well, tail people in part, strangers are in no text at all. Whoever asks for a fact gets the
truth, so recall, hallucination and edits are judged exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws, held_out
from maypole.village.names import FEMALE, FOODS, HOMES, JOBS, LAST, MALE, REGIONS, RIVERS, TOOLS, VALUES

Group = Literal["head", "tail", "stranger"]
Role = Literal["father", "mother", "child"]
ATTRIBUTES = ("job", "home", "pet", "food", "month", "market", "instrument", "treasure")
KIN = ("spouse", "mother", "father", "sibling")
PERSON_RELATIONS = (*KIN, "friend", "teacher")
PLACE_RELATIONS = ("river", "region", "dish")
RELATIONS = (*ATTRIBUTES, *PERSON_RELATIONS, *PLACE_RELATIONS, "tool")
NEXT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PERSON_RELATIONS, (*ATTRIBUTES, *PERSON_RELATIONS)),
    "home": PLACE_RELATIONS,
    "job": ("tool",),
}
"""Which relations can follow a relation in a question of several hops."""
TAIL_TOLD = 3 / 8
HELD_PAIRS = 0.1


class Fact(NamedTuple):
    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True)
class Person:
    """`index` counts over all groups; `role` is father, mother or child."""

    index: int
    first: str
    last: str
    family: int
    group: Group
    role: Role
    female: bool

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def held_person(self) -> bool:
        """Every eighth person is never named in a training chat (the positions rotate through the family roles)."""
        return (self.index + self.index // 8) % 8 == 7


class World:
    """A village drawn from `seed`: `families` known ones, `tail` half-known ones, `strangers` in no text."""

    def __init__(self, seed: int = 0, families: int = 48, tail: int = 16, strangers: int = 16) -> None:
        for field, value in (("families", families), ("tail", tail), ("strangers", strangers)):
            if value < 2 and (value != 0 or field == "families"):
                least = "at least 2" if field == "families" else "0 or at least 2"
                raise ConfigError(field, value, f"{least} (friends come from another family of the same group)")
        if families + tail + strangers > len(LAST):
            raise ConfigError("families", families, f"at most {len(LAST)} with tail and strangers together")
        self.seed, self.families, self.tail_families, self.stranger_families = seed, families, tail, strangers
        draws = Draws(seed, "world")
        sizes: dict[Group, int] = {"head": families, "tail": tail, "stranger": strangers}
        groups: list[Group] = [group for group, size in sizes.items() for _ in range(size)]
        self.people: tuple[Person, ...] = tuple(_people(draws, groups))
        self.facts: tuple[Fact, ...] = (*_person_facts(draws, self.people), *_place_facts(draws))
        self.lookup: dict[tuple[str, str], str] = {(f.subject, f.relation): f.object for f in self.facts}

    @property
    def identity(self) -> str:
        """Names the world in keys of results: equal identities have equal facts."""
        return f"village-{self.seed}-{self.families}-{self.tail_families}-{self.stranger_families}"

    @cached_property
    def by_name(self) -> dict[str, Person]:
        return {person.name: person for person in self.people}

    def group(self, group: Group) -> list[Person]:
        return [person for person in self.people if person.group == group]

    @cached_property
    def head(self) -> list[Person]:
        return self.group("head")

    @cached_property
    def tail(self) -> list[Person]:
        return self.group("tail")

    @cached_property
    def strangers(self) -> list[Person]:
        return self.group("stranger")

    @cached_property
    def chat_people(self) -> list[Person]:
        """Head people who may be named in training chats."""
        return [person for person in self.head if not person.held_person]

    @cached_property
    def facts_of(self) -> dict[str, list[Fact]]:
        """All facts of a subject (a person, a place or a job), told or not."""
        table: dict[str, list[Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.subject, []).append(fact)
        return table

    @cached_property
    def told_of(self) -> dict[str, list[Fact]]:
        """The facts of a subject that training texts may tell; subjects without one are missing."""
        told = {subject: [f for f in facts if self.told(f)] for subject, facts in self.facts_of.items()}
        return {subject: facts for subject, facts in told.items() if facts}

    @cached_property
    def head_facts(self) -> list[Fact]:
        return [fact for person in self.head for fact in self.facts_of[person.name]]

    @cached_property
    def place_facts(self) -> list[Fact]:
        """Facts of places and jobs."""
        return [fact for fact in self.facts if fact.subject not in self.by_name]

    def told(self, fact: Fact) -> bool:
        person = self.by_name.get(fact.subject)
        if person is None or person.group == "head":
            return True
        return person.group == "tail" and held_out(TAIL_TOLD, "told", self.seed, fact.subject, fact.relation)

    def value(self, subject: str, *relations: str) -> str | None:
        """Follow `relations` from `subject`; None where a step has no fact."""
        for relation in relations:
            found = self.lookup.get((subject, relation))
            if found is None:
                return None
            subject = found
        return subject

    def named(self, subject: str) -> bool:
        """Whether training chats may name this subject or value: not if it is a held-out person."""
        person = self.by_name.get(subject)
        return person is None or not person.held_person

    def held_pair(self, subject: str, relation: str) -> bool:
        """Whether questions of several hops through (subject, relation) are kept for tests."""
        return held_out(HELD_PAIRS, "pair", self.seed, subject, relation)


def _people(draws: Draws, groups: Sequence[Group]) -> list[Person]:
    last_names = draws.shuffled(LAST)
    people: list[Person] = []
    for family, group in enumerate(groups):
        daughters = [draws.chance(0.5), draws.chance(0.5)]
        women, men = draws.sample(FEMALE, 3), draws.sample(MALE, 3)
        members: list[tuple[str, Role, bool]] = [(men[0], "father", False), (women[0], "mother", True)]
        for place, daughter in enumerate(daughters, start=1):
            members.append(((women if daughter else men)[place], "child", daughter))
        for first, role, female in members:
            people.append(Person(len(people), first, last_names[family], family, group, role, female))
    return people


def _person_facts(draws: Draws, people: Sequence[Person]) -> list[Fact]:
    facts: list[Fact] = []
    for person in people:
        father, mother, *children = people[4 * person.family : 4 * person.family + 4]
        facts += [Fact(person.name, relation, draws.pick(VALUES[relation])) for relation in ATTRIBUTES]
        if person.role == "child":
            sibling = children[1] if person is children[0] else children[0]
            kin = (("mother", mother), ("father", father), ("sibling", sibling))
        else:
            kin = (("spouse", mother if person is father else father),)
        others = [p for p in people if p.group == person.group and p.family != person.family]
        chosen = draws.sample(others, 2)
        for relation, other in (*kin, ("friend", chosen[0]), ("teacher", chosen[1])):
            facts.append(Fact(person.name, relation, other.name))
    return facts


def _place_facts(draws: Draws) -> list[Fact]:
    facts: list[Fact] = []
    for place in HOMES:
        facts.append(Fact(place, "river", draws.pick(RIVERS)))
        facts.append(Fact(place, "region", draws.pick(REGIONS)))
        facts.append(Fact(place, "dish", draws.pick(FOODS)))
    facts += [Fact(job, "tool", tool) for job, tool in zip(JOBS, TOOLS)]
    return facts
