"""Facts to change, as CounterFact records (arXiv 2202.05262): new value, paraphrases, neighbours that must not move.

`register` "ledger" ends the prompt with the subject, which editing at the subject's last token needs in a small
model; "text" uses statements. Knows no editing method.
"""

from functools import lru_cache

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.pages import ledger_entry
from maypole.village.phrases import LEDGER_OPENING, LEDGERS, SEEN, WORDS, before_value, statement
from maypole.village.world import ATTRIBUTES, Fact, Group, Person, World

NEIGHBOURS = 10
GROUPS: tuple[Group, ...] = ("head", "tail", "stranger")


def _prompt(register: str, fact: Fact, choice: tuple[int, int]) -> str:
    """Everything before the value; " {noun} of {subject}" in the ledger."""
    noun, frame = choice
    if register == "ledger":
        return f" {LEDGER_OPENING} {before_value(ledger_entry(fact, noun, frame), fact.object)}"
    return f" {before_value(statement(fact, noun, frame), fact.object)}"


@lru_cache(maxsize=16)
def _order(seed: int, people: int) -> list[int]:
    return Draws(seed, "order of edits").shuffled(range(people))


def _rewritten(world: World, draws: Draws, group: Group) -> tuple[Person, str]:
    """The person and attribute of this record: nobody comes twice before everybody came once, no fact comes twice
    before all did."""
    people, index = world.group(group), int(draws.names[-1])
    turn, place = divmod(index, len(people))
    person = people[_order(draws.seed, len(people))[place]]
    start = Draws(draws.seed, "first edit", person.index).below(len(ATTRIBUTES))
    return person, ATTRIBUTES[(start + turn) % len(ATTRIBUTES)]


def edits(world: World, draws: Draws, register: str = "ledger", group: Group = "head") -> dict:
    """One record about an attribute of a person of `group`; the first records of a seed have different subjects.

    Strangers get their first value (target_true is the world's, which no text tells).
    """
    if register not in ("ledger", "text"):
        raise ConfigError("register", register, ["ledger", "text"])
    if group not in GROUPS or not world.group(group):
        raise ConfigError("group", group, [name for name in GROUPS if world.group(name)])
    person, relation = _rewritten(world, draws, group)
    fact = Fact(person.name, relation, world.lookup[person.name, relation])
    new = draws.pick_other(VALUES[relation], fact.object)
    if register == "ledger":
        choices = draws.shuffled([(noun, frame) for frame in range(len(LEDGERS)) for noun in range(4)])
    else:
        choices = draws.shuffled(SEEN[relation])
    first, *others = choices
    prompt = _prompt(register, fact, first).replace(person.name, "{}")
    same = [p for p in world.head if p.name != person.name and world.lookup[p.name, relation] == fact.object]
    neighbours = [Fact(p.name, relation, fact.object) for p in draws.sample(same, min(NEIGHBOURS, len(same)))]
    holders = [p for p in world.head if p.name != person.name and world.lookup[p.name, relation] == new]
    attribute = [Fact(p.name, relation, new) for p in draws.sample(holders, min(NEIGHBOURS, len(holders)))]
    rest = [other for other in ATTRIBUTES if other != relation]
    return {
        "case_id": draws.names[-1],
        "pararel_idx": 0,
        "requested_rewrite": {
            "prompt": prompt,
            "relation_id": relation,
            "target_new": {"str": new, "id": f"{relation}:{new}"},
            "target_true": {"str": fact.object, "id": f"{relation}:{fact.object}"},
            "subject": person.name,
        },
        "paraphrase_prompts": [_prompt(register, fact, choice) for choice in others[:2]],
        "neighborhood_prompts": [_prompt(register, neighbour, first) for neighbour in neighbours],
        "attribute_prompts": [_prompt(register, holder, first) for holder in attribute],
        "generation_prompts": [
            f" The {WORDS[other][0]} of {person.name} is" for other in draws.sample(rest, min(3, len(rest)))
        ],
    }
