"""What a checkpoint knows of the village: every group of questions asked once, greedily, and put into the card's rows.

Knows nothing about how a checkpoint was made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

from maypole.core.manifest import versions
from maypole.engine.engine import Engine
from maypole.engine.request import Request, Sampling
from maypole.evaluate.perplexity import perplexity
from maypole.models.language_model import LanguageModel
from maypole.village.draws import Draws
from maypole.village.figures import Figures
from maypole.village.instruct import BASE_NAMES, HELD_OUT_TASKS
from maypole.village.measures import (
    MAX_NEW_TOKENS,
    Prompt,
    Question,
    belief_questions,
    chances,
    few_shot_questions,
    hop_questions,
    recall_questions,
    score,
    task_questions,
)
from maypole.village.render import render
from maypole.village.web import DOMAINS
from maypole.village.world import World

HELD_OUT = tuple(task.name for task in HELD_OUT_TASKS)
LOOKUP = ("who", "read", "after")
UNSEEN = 1
"""Seed of the documents whose perplexity is measured: no recipe draws from it."""

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("facts, trained wording", ("attribute/trained",)),
    ("facts, held-out wording H1", ("attribute/H1",)),
    ("facts, held-out wording H2", ("attribute/H2",)),
    ("facts, verb form", ("attribute/verb",)),
    ("facts, after an unseen word", ("attribute/H3 unseen word",)),
    ("facts, ledger", ("attribute/ledger",)),
    ("facts, as a chat question", ("attribute/chat",)),
    ("facts, chat question about a person never asked about", ("attribute/HP",)),
    ("facts, question form never seen (HQ)", ("attribute/HQ",)),
    ("relations between people, trained wording", ("person/trained",)),
    ("relations, held-out wordings H1 and H2", ("person/H1", "person/H2")),
    ("relations, question form never seen (HQ)", ("person/HQ",)),
    ("facts told rarely", ("tail/trained",)),
    ("two hops with steps, unseen pairs", ("hop2/steps/unseen",)),
    ("two hops at once, unseen pairs", ("hop2/direct/unseen",)),
    ("three hops with steps, unseen pairs", ("hop3/steps/unseen",)),
    ("32 tasks of the mix, test inputs", tuple(f"task/{name}" for name in BASE_NAMES)),
    ("8 tasks never seen", tuple(f"task/{name}" for name in HELD_OUT)),
    *((f'looking a fact up in the prompt: "{name}"', (f"task/{name}",)) for name in LOOKUP),
    *((f"hidden two-way labelling, {shots} examples", (f"few-shot/{shots}",)) for shots in (1, 4, 16)),
    ("stories: where a thing is", ("story/reality",)),
    ("stories: first-order true belief", ("story/true belief",)),
    ("stories: first-order false belief", ("story/false belief",)),
)
"""A line of the card and the groups of questions whose mean it is."""


@dataclass(frozen=True, slots=True)
class Line:
    """Mean score of some groups of questions, and what guessing scores there."""

    measure: str
    score: float
    chance: float


def answers(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy continuations or answers."""
    engine = Engine(lm)
    sampling = Sampling(max_tokens=MAX_NEW_TOKENS, temperature=0.0)
    try:
        return [output.text for output in engine.generate([Request(prompt, sampling) for prompt in prompts])]
    finally:
        engine.close()


def asked(count: int) -> list[Question]:
    """`count` questions of each kind of fact and hop, a quarter as many of each task, for the default world."""
    world = World(0)
    return [
        *recall_questions(world, count),
        *hop_questions(world, count),
        *task_questions(world, max(1, count // 4)),
        *few_shot_questions(world, count),
        *belief_questions(world, count),
    ]


def examine(lm: LanguageModel, count: int = 100) -> list[Line]:
    """The lines of the card."""
    return _lines(*_marks(lm, count))


def figures(lm: LanguageModel, name: str, manifest: Mapping[str, Any], count: int = 100) -> Figures:
    """All that is measured of a checkpoint; `manifest` tells what training it took, and may be empty."""
    scores, guesses = _marks(lm, count)
    lines = _lines(scores, guesses)
    tasks = [*BASE_NAMES, *HELD_OUT]
    trained = manifest.get("metrics", {})
    return Figures(
        name=name,
        family=lm.transformer.config.model_type,
        parameters=sum(p.numel() for p in lm.model.parameters()),
        vocabulary=len(lm.tokenizer),
        tokens=trained.get("tokens"),
        steps=trained.get("steps"),
        wall_seconds=manifest.get("wall_seconds"),
        cpu_seconds=manifest.get("cpu_seconds"),
        questions=count,
        knowledge={line.measure: line.score for line in lines},
        tasks={task: scores[f"task/{task}"] for task in tasks},
        chance={line.measure: line.chance for line in lines} | {task: guesses[f"task/{task}"] for task in tasks},
        perplexity=perplexities(lm, count),
        versions=versions(),
    )


def perplexities(lm: LanguageModel, count: int = 100) -> dict[str, float]:
    """Of a token of `count` documents of each kind that no training draws, and of Python's documentation, by itself
    and in bits per byte, which alone compares vocabularies."""
    world = World(0)
    kinds = {name: [draw(world, Draws(UNSEEN, "web", name, i)) for i in range(count)] for name, draw in DOMAINS.items()}
    kinds |= {name: [row["text"] for row in render(world, name, count, UNSEEN)] for name in ("story", "ledger")}
    documentation = [text for _, text in sorted(topics.items())][:count]
    engine = Engine(lm)
    try:
        found = {name: perplexity(engine, texts).perplexity for name, texts in kinds.items()}
        read = perplexity(engine, documentation)
    finally:
        engine.close()
    bits = float(read.nll.sum()) / math.log(2) / sum(len(text.encode()) for text in documentation)
    return found | {"Python's documentation": read.perplexity, "the same, bits per byte": bits}


def _marks(lm: LanguageModel, count: int) -> tuple[dict[str, float], dict[str, float]]:
    questions = asked(count)
    return score(questions, answers(lm, [q.prompt for q in questions])), chances(questions)


def _lines(scores: dict[str, float], guesses: dict[str, float]) -> list[Line]:
    return [Line(name, _mean(scores, groups), _mean(guesses, groups)) for name, groups in ROWS]


def table(lines: Sequence[Line]) -> str:
    """The lines in Markdown."""
    rows = [f"| {line.measure} | {line.score:.2f} | {line.chance:.2f} |" for line in lines]
    return "\n".join(["| measure | score | chance |", "|---|---|---|", *rows])


def _mean(values: dict[str, float], groups: Sequence[str]) -> float:
    return sum(values[group] for group in groups) / len(groups)
