"""Descriptions to prefer: one to six clauses about a person, 60 % of them right, and oracles that judge them.

Gold reward R = right - wrong - repeated clauses. The oracles are Bradley-Terry on R, the same with a bias towards
length, and one with rock-paper-scissors between styles, which no reward can express (arXiv 2405.00675 section 3,
2405.07863, 2405.08448 use such judges). Knows no model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from maypole.core.errors import ConfigError
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.phrases import WORDS
from maypole.village.world import ATTRIBUTES, World

RIGHT = 0.6
CLAUSES = 6
CYCLE = ((0, 1, -1), (-1, 0, 1), (1, -1, 0))
"""C[style, style']: each style beats one and loses to the other."""
NOUN_RELATION = {WORDS[relation][0]: relation for relation in ATTRIBUTES}
JUDGES = ("bradley-terry", "length-biased", "intransitive")


class Facts(Protocol):
    """What is true: `lookup` of (name, attribute). A `World` is one."""

    @property
    def lookup(self) -> Mapping[tuple[str, str], str]: ...


def describe_prompt(name: str) -> str:
    return f" Describe {name}:"


def clauses(completion: str) -> list[tuple[str, str]]:
    """(relation, value) of each well-formed clause " job baker"; others have relation ""."""
    found: list[tuple[str, str]] = []
    for part in completion.strip().rstrip(".").split(", "):
        noun, _, value = part.strip().partition(" ")
        found.append((NOUN_RELATION.get(noun, ""), value))
    return found


def gold_reward(world: Facts, name: str, completion: str) -> float:
    """R = right - wrong - repeated; a malformed clause is wrong, a repeated one counts as repeated only."""
    score, seen = 0, set()
    for clause in clauses(completion):
        if clause in seen:
            score -= 1
        elif clause[0] and world.lookup.get((name, clause[0])) == clause[1]:
            score += 1
        else:
            score -= 1
        seen.add(clause)
    return float(score)


def style(completion: str) -> int:
    """0, 1 or 2: the first clause's attribute modulo three (0 where it is malformed)."""
    relation = clauses(completion)[0][0]
    return ATTRIBUTES.index(relation) % 3 if relation else 0


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True, slots=True)
class Oracle:
    """A preference with the signature of `maypole.core.judge.Preference`: P(a beats b) for each row.

    `margin` sees the gold reward's difference, the difference in clauses and both styles.
    """

    world: Facts
    margin: Callable[[float, int, int, int], float]

    def probability(self, prompt: str, a: str, b: str) -> float:
        name = subject_of(prompt)
        gain = gold_reward(self.world, name, a) - gold_reward(self.world, name, b)
        return _sigmoid(self.margin(gain, len(clauses(a)) - len(clauses(b)), style(a), style(b)))

    def __call__(self, prompts: list[str], a: list[str], b: list[str], **columns: list) -> list[float | None]:
        return [self.probability(prompt, x, y) for prompt, x, y in zip(prompts, a, b)]


def subject_of(prompt: str) -> str:
    return prompt.strip().removeprefix("Describe ").rstrip(":")


def oracle(world: Facts, judge: str = "bradley-terry", length_bias: float = 0.25) -> Oracle:
    """One of `JUDGES`. `length_bias` is per clause (two tokens each: 0.125 a token)."""
    if judge == "bradley-terry":
        return Oracle(world, lambda gain, longer, first, second: gain)
    if judge == "length-biased":
        return Oracle(world, lambda gain, longer, first, second: gain + length_bias * longer)
    if judge == "intransitive":
        return Oracle(world, lambda gain, longer, first, second: 0.5 * gain + 3 * CYCLE[first][second])
    raise ConfigError("judge", judge, JUDGES)


def completion(world: World, draws: Draws, name: str) -> str:
    """One to six clauses, each right with probability 0.6; the same attribute may come twice."""
    parts: list[str] = []
    for _ in range(draws.between(1, CLAUSES)):
        relation = draws.pick(ATTRIBUTES)
        truth = world.lookup[name, relation]
        value = truth if draws.chance(RIGHT) else draws.pick_other(VALUES[relation], truth)
        parts.append(f"{WORDS[relation][0]} {value}")
    return f" {', '.join(parts)}."


def describe(world: World, draws: Draws, form: str = "completion", judge: str = "bradley-terry") -> dict:
    """`form` "completion": prompt and one answer; "pairs": two, labelled by a draw from the judge's probability."""
    name = draws.pick(world.head).name
    prompt, first = describe_prompt(name), completion(world, draws, name)
    if form == "completion":
        return {"prompt": prompt, "completion": first, "score": gold_reward(world, name, first)}
    if form != "pairs":
        raise ConfigError("form", form, ["completion", "pairs"])
    second = completion(world, draws, name)
    while second == first:
        second = completion(world, draws, name)
    probability = oracle(world, judge).probability(prompt, first, second)
    chosen, rejected = (first, second) if draws.chance(probability) else (second, first)
    scores = [gold_reward(world, name, chosen), gold_reward(world, name, rejected)]
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_score": scores[0],
        "rejected_score": scores[1],
        "probability": round(probability if chosen == first else 1 - probability, 6),
    }
