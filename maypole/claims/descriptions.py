"""A corner of the village in which answers have qualities to prefer: people described in one to six clauses, six in ten
of them right, and a small policy that has learnt to talk like that.

Knows nothing about how anybody is trained on preferences.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.claims.llama import llama
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.engine import Engine, Request, Sampling
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.supervised import Completions
from maypole.village.blank import Init, draw
from maypole.village.describe import CLAUSES, RIGHT, describe_prompt
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.phrases import WORDS
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import ATTRIBUTES, World

FAMILIES = 6
"""Of four people each."""
KNOWN = ATTRIBUTES[:CLAUSES]
VALUED = 8
"""Values of an attribute; there are but seven market days."""
LONGEST = 32
"""Tokens of an answer; six clauses and the end are 19."""


class Corner:
    """Twenty-four people with six attributes of eight values; `lookup` says what is true."""

    def __init__(self, seed: int) -> None:
        self.fingerprint = digest("corner", str(seed))
        draws = Draws(seed, "corner")
        people = World(seed, families=FAMILIES, tail=0, strangers=0).people
        self.names = [person.name for person in people]
        self.values: dict[str, list[str]] = {a: draws.sample(VALUES[a], min(VALUED, len(VALUES[a]))) for a in KNOWN}
        self.lookup = {(name, a): draws.pick(self.values[a]) for name in self.names for a in KNOWN}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        words = [f"{WORDS[a][0]} {value}, ." for a, values in self.values.items() for value in values]
        return word_tokenizer([*map(describe_prompt, self.names), *words])

    def told(self, draws: Draws, count: int) -> Dataset:
        """Prompts with an answer each, to learn how people are described."""
        names = [draws.pick(self.names) for _ in range(count)]
        answers = [self.answer(draws, name) for name in names]
        return Dataset.from_dict({"prompt": list(map(describe_prompt, names)), "completion": answers})

    def answer(self, draws: Draws, name: str) -> str:
        """One to six clauses about different attributes, each right with probability 0.6."""
        parts: list[str] = []
        for attribute in draws.sample(KNOWN, draws.between(1, CLAUSES)):
            truth, values = self.lookup[name, attribute], self.values[attribute]
            value = truth if draws.chance(RIGHT) else draws.pick_other(values, truth)
            parts.append(f"{WORDS[attribute][0]} {value}")
        return f" {', '.join(parts)}."

    def prompts(self, count: int) -> Dataset:
        """Everybody as often."""
        return Dataset.from_dict({"prompt": [describe_prompt(self.names[i % len(self.names)]) for i in range(count)]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Schooling:
    """How the first policy is made: layers and width, steps of so many answers."""

    size: tuple[int, int] = (2, 64)
    steps: int = 300
    examples_per_step: int = 64
    learning_rate: float = 1e-2
    """Of 3e-3, 5e-3 and 1e-2 the one whose policy is right most often."""


def first_policy(corner: Corner, seed: int, out: Path, schooling: Schooling = Schooling()) -> LanguageModel:
    """A Llama that describes people as `Corner.told` does, right and wrong."""
    lm = llama(corner.tokenizer(), schooling.size, derive(seed, "policy"), widening=3)
    draw(lm, Init(), torch.Generator().manual_seed(derive(seed, "init")))
    rows = corner.told(Draws(seed, "told"), schooling.steps * schooling.examples_per_step)
    config = TrainConfig(
        learning_rate=schooling.learning_rate, max_steps=schooling.steps, lr_scheduler_type="cosine",
        examples_per_step=schooling.examples_per_step, warmup_ratio=0.05, precision="fp32", save_steps=schooling.steps,
    )  # fmt: skip
    fit(lm, rows, Completions(), config, out=out, seed=derive(seed, "schooling"))
    return lm


def answers(engine: Engine, names: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """`count` answers about each of `names`, drawn at temperature 1."""
    requests = [
        Request(describe_prompt(name), Sampling(n=count, max_tokens=LONGEST, seed=derive(seed, "answers", name)))
        for name in names
    ]
    found: dict[str, list[str]] = {name: [] for name in names}
    for output, name in zip(engine.generate(requests), (name for name in names for _ in range(count))):
        found[name].append(output.text)
    return found


def well_formed(corner: Corner, said: Mapping[str, Sequence[str]]) -> float:
    """Share of the answers that are clauses of an attribute and one of its values, and end."""
    clause = "|".join(f"{WORDS[a][0]} (?:{'|'.join(values)})" for a, values in corner.values.items())
    form = re.compile(rf" ?(?:{clause})(?: ?, (?:{clause}))* ?\.")
    every = [answer for some in said.values() for answer in some]
    return sum(form.fullmatch(answer) is not None for answer in every) / len(every)
