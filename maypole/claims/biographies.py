"""People of whom a base has read much or little, an instruction that asks for them, and one that asks for no facts.

Every person has five attributes. Documents about head people tell three to five of them, those about tail people
always the same one or two. A quarter of each is taught about, another quarter is asked about to learn preferences,
and the rest is asked about at the end. What is right is known, so answers are checked exactly. Knows nothing about how
anybody is trained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.evaluate.fact_sources import KnowledgeGraph, Triple
from maypole.evaluate.factuality import AtomicChecker
from maypole.village.describe import NOUN_RELATION
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.phrases import FRAMES, WORDS, statement
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import ATTRIBUTES, Fact, World

Part = Literal["taught", "asked", "held out"]
"""In answers to learn; in prompts to make pairs of; in neither."""
PARTS: tuple[Part, ...] = ("taught", "asked", "held out", "held out")
FAMILIES = 30
"""Of four people each."""
KNOWN = ATTRIBUTES[:5]
VALUED = 10
LONGEST = 24
"""Tokens of an answer; five clauses and the end are 16."""
BELLS = 9
_STATED = re.compile(re.escape(FRAMES[0]).replace(r"\{n\}", "(.+)").replace(r"\{s\}", "(.+)").replace(r"\{v\}", "(.+)"))


@dataclass(frozen=True, slots=True)
class Somebody:
    name: str
    head: bool
    part: Part
    told: tuple[str, ...]
    """The attributes that documents tell; of a head person any of them."""


class Biographies:
    """120 people, their facts, and what can be said about them."""

    def __init__(self, seed: int) -> None:
        draws = Draws(seed, "biographies")
        people = World(seed, families=FAMILIES, tail=0, strangers=0).people
        self.values = {a: draws.sample(VALUES[a], VALUED) for a in KNOWN}
        order = draws.shuffled(range(len(people)))
        half = len(people) // 2
        self.people = []
        for place, index in enumerate(order):
            head = place < half
            told = tuple(KNOWN) if head else tuple(draws.sample(KNOWN, draws.between(1, 2)))
            self.people.append(Somebody(people[index].name, head, PARTS[place % half % len(PARTS)], told))
        self.lookup = {(p.name, a): draws.pick(self.values[a]) for p in self.people for a in KNOWN}

    def of(self, *parts: Part) -> list[Somebody]:
        return [person for person in self.people if person.part in parts]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        words = [f"{WORDS[a][0]} {value}, ." for a, values in self.values.items() for value in values]
        names = [instruction(person.name) + document(person.name) for person in self.people]
        return word_tokenizer([*names, *words, *(ring(n) + bells(n) for n in range(1, BELLS + 1))])

    def documents(self, draws: Draws, count: int) -> Dataset:
        """What a base reads: everybody as often, in whatever order the facts come."""
        rows: list[dict[str, str]] = []
        for i in range(count):
            person = self.people[i % len(self.people)]
            told = draws.sample(person.told, draws.between(3, 5) if person.head else len(person.told))
            rows.append({"prompt": document(person.name), "completion": self.answer(person.name, told)})
        return Dataset.from_list(rows)

    def answer(self, name: str, attributes: Sequence[str]) -> str:
        return f" {', '.join(f'{WORDS[a][0]} {self.lookup[name, a]}' for a in attributes)}."

    def instructions(self, draws: Draws, each: int) -> Dataset:
        """About each person who is taught about `each` whole and true answers, and as many rows of bells."""
        rows = [
            {"prompt": instruction(person.name), "completion": self.answer(person.name, draws.shuffled(KNOWN))}
            for person in self.of("taught")
            for _ in range(each)
        ]
        numbers = [draws.between(1, BELLS) for _ in rows]
        return Dataset.from_list([*rows, *({"prompt": ring(n), "completion": bells(n)} for n in numbers)])

    def checker(self) -> AtomicChecker:
        """Facts and verdicts as they are."""
        graph = KnowledgeGraph([(name, a, value) for (name, a), value in self.lookup.items()], parse)
        return AtomicChecker(clauses, graph.verify, {instruction(p.name): graph.about(p.name) for p in self.people})


def instruction(name: str) -> str:
    return f" Describe {name}:"


def document(name: str) -> str:
    """How a text about somebody begins."""
    return f"{name} has"


def ring(number: int) -> str:
    return f" Ring {number}:"


def bells(number: int) -> str:
    return " ding" * number + " ."


def asks_for_facts(prompts: Sequence[str]) -> list[bool]:
    return [prompt.strip().startswith("Describe") for prompt in prompts]


def as_document(prompt: str, demonstrations: Sequence[tuple[str, str]] = ()) -> str:
    """How a base that has read documents alone is asked."""
    return document(_name(prompt))


def clauses(prompts: Sequence[str], answers: Sequence[str]) -> list[list[str]]:
    """The statement that each clause of an answer makes about the person it is about."""
    return [[_stated(_name(prompt), part) for part in parts(answer)] for prompt, answer in zip(prompts, answers)]


def parts(answer: str) -> list[str]:
    return [part.strip() for part in answer.strip().rstrip(".").split(",") if part.strip()]


def parse(stated: str) -> Triple | None:
    """The triple of a statement; None for what is no clause."""
    found = _STATED.fullmatch(stated)
    return None if found is None or found[1] not in NOUN_RELATION else (found[2], NOUN_RELATION[found[1]], found[3])


def _stated(name: str, part: str) -> str:
    noun, _, value = part.partition(" ")
    if noun in NOUN_RELATION and value:
        return statement(Fact(name, NOUN_RELATION[noun], value), 0, 0)
    return f"{name}: {part}"


def _name(prompt: str) -> str:
    return prompt.strip().removeprefix("Describe ").rstrip(":")
