"""Closed-book questions about the world: one hop, two and three hops, answered at once or with the steps.

Held-out people are in no training chat, and a training question of several hops passes through no held-out
(subject, relation) pair at any of its steps. Knows nothing about passages' retrieval.
"""

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.phrases import QUESTIONS, WORDS, ask, statement
from maypole.village.world import NEXT, Fact, World

STEPS = " Step by step."
CONCLUSION = "So: "


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _row(question: str, answer: str, reply: str, facts: list[Fact], split: str) -> dict:
    return {
        "messages": chat(question, reply),
        "question": question,
        "answers": [answer],
        "passages": [statement(fact, 0, 0) for fact in facts],
        "split": split,
    }


def check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ConfigError("split", split, ["train", "test"])


def qa(world: World, draws: Draws, split: str = "train") -> dict:
    """One fact asked for. "train": people who may be named; "test": one of the held-out people."""
    check_split(split)
    while True:
        kind = draws.unit()
        if kind < 0.06:
            fact = draws.pick(world.place_facts)
        elif kind < 0.1 and world.tail:
            fact = draws.pick(world.told_of.get(draws.pick(world.tail).name) or world.place_facts)
        else:
            fact = draws.pick(world.head_facts)
        known = world.named(fact.subject) and world.named(fact.object)
        if known == (split == "train") and (known or not world.named(fact.subject)):
            break
    question = ask(fact.relation, fact.subject, draws.below(4), draws.pick(QUESTIONS))
    return _row(question, fact.object, fact.object, [fact], split)


def path_facts(world: World, subject: str, relations: tuple[str, ...]) -> list[Fact] | None:
    """The chain of facts from `subject` along `relations`; None where a fact is missing."""
    facts: list[Fact] = []
    for relation in relations:
        found = world.lookup.get((subject, relation))
        if found is None:
            return None
        facts.append(Fact(subject, relation, found))
        subject = found
    return facts


def held_path(world: World, facts: list[Fact]) -> bool:
    """Whether the chain goes on from a held-out (subject, relation) pair; its last fact is asked alone, elsewhere."""
    return any(world.held_pair(fact.subject, fact.relation) for fact in facts[:-1])


def _path(world: World, draws: Draws, hops: int, split: str) -> list[Fact]:
    while True:
        person = draws.pick(world.chat_people)
        relations = [draws.pick(list(NEXT))]
        while len(relations) < hops and relations[-1] in NEXT:
            relations.append(draws.pick(NEXT[relations[-1]]))
        facts = path_facts(world, person.name, tuple(relations)) if len(relations) == hops else None
        if facts is None or not all(world.named(fact.object) for fact in facts):
            continue
        if facts[-1].object == person.name:
            continue
        first_held = world.held_pair(facts[0].subject, facts[0].relation)
        if (split == "train" and not held_path(world, facts)) or (split == "test" and first_held):
            return facts


def hop_question(facts: list[Fact], nouns: list[int], frame: str) -> str:
    """ "What is the job of the friend of Ada Fenn?" for a chain of facts."""
    subject = facts[0].subject
    for fact, noun in zip(facts[:-1], nouns):
        subject = f"the {WORDS[fact.relation][noun]} of {subject}"
    last = facts[-1]
    return ask(last.relation, subject, nouns[-1], frame).replace("the the", "the")


def hop_steps(facts: list[Fact]) -> str:
    """ "The friend of X is Y. The job of Y is Z. So: Z": first nouns in the first frame, which are always seen."""
    return " ".join(statement(fact, 0, 0) for fact in facts) + f" {CONCLUSION}{facts[-1].object}"


def hop(world: World, draws: Draws, hops: int, split: str = "train", steps: bool | None = None) -> dict:
    """A question of `hops` steps; `steps` None draws whether the answer shows them (the question then asks for it)."""
    check_split(split)
    facts = _path(world, draws, hops, split)
    with_steps = draws.chance(0.5) if steps is None else steps
    question = hop_question(facts, [draws.below(4) for _ in facts], draws.pick(QUESTIONS))
    question += STEPS if with_steps else ""
    reply = hop_steps(facts) if with_steps else facts[-1].object
    return _row(question, facts[-1].object, reply, facts, split) | {"hops": hops, "steps": with_steps}
