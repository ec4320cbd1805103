"""How much of everything fits into the minutes: arithmetic on what a probe measured, done once and kept in plan.json.

A stage takes its steps and items from the plan and never looks at the clock. Knows nothing about models or what the
stages do with their share.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maypole.core.atomic import write_atomic
from maypole.core.errors import ArtifactError

RESERVE = 0.2
"""Of the minutes: kept for a machine that turns out slower than the probe."""
LEAST_SHARE = 0.3
"""Of the minutes: what the stages get even where reading and probing took the rest."""
EVALUATE_SHARE = 0.2
"""Of the stages' seconds, at most; the rest is for learning."""
INSTRUCTION_SHARE = 0.3
"""Of the seconds of learning, at most."""
EXAMPLES_PER_STEP = 16
LEAST_STEPS = 40
"""Where a run would have fewer, its steps become smaller."""
INSTRUCTION_STEPS = 600
"""Enough for the tasks that are taught."""
MAX_PASSES = 3
"""Over the corpus."""
INSTRUCTIONS_A_ROW = 1 / 1.6
"""Share of instructions among the rows of their run, the rest is kept knowledge."""
CURVE_POINTS = 8
"""Times that the held-out loss is measured on the way."""
CURVE_SHARE = 0.1
"""Of the seconds of learning, at most, goes into those measurements."""
CURVE_DOCUMENTS = 40
DOCUMENTS = 400
GENERAL = 100
QUESTIONS = 600
LEAST_DOCUMENTS, LEAST_QUESTIONS = 16, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a probe found. Rows are those of training: `rows_a_document` of the corpus, replayed ones among them."""

    train_tokens_per_second: float
    score_tokens_per_second: float
    answers_per_second: float
    tokens_a_document: float
    rows_a_document: float
    tokens_a_row: float
    tokens_an_instruction_row: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptPlan:
    """`documents` of the corpus to learn, `curve_documents` to measure on the way; `instruction_rows` 0: the corpus
    alone is learnt."""

    seconds: int
    examples_per_step: int
    documents: int
    curve_documents: int
    corpus_steps: int
    instruction_rows: int
    instruction_steps: int

    @property
    def steps(self) -> int:
        return self.corpus_steps + self.instruction_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePlan:
    """Held-out documents of the corpus, texts on anything else, questions."""

    seconds: int
    documents: int
    general: int
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`asked` is what the tour was told, by name and by identity; `preparation` seconds went by before the plan."""

    asked: Mapping[str, Any]
    threads: int
    preparation: float
    rates: Rates
    adapt: AdaptPlan
    evaluate: EvaluatePlan

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """ArtifactError where the file is not a tour's plan."""
        try:
            document = json.loads(path.read_bytes())
            stages = {"adapt": AdaptPlan(**document["adapt"]), "evaluate": EvaluatePlan(**document["evaluate"])}
            return cls(**{**document, **stages, "rates": Rates(**document["rates"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError("is not the plan of a tour", str(path), "name another --out") from error


def divide(
    rates: Rates, seconds: float, *, train: int, held_out: int, instruct: bool, general: bool, questions: bool
) -> tuple[AdaptPlan, EvaluatePlan]:
    """`seconds` shared out: evaluation takes what it can use up to a fifth, learning has the rest.

    train, held_out: documents of the corpus. instruct, general, questions: whether there is such work at all.
    """
    evaluated = _evaluate(rates, EVALUATE_SHARE * seconds, held_out, general, questions)
    return _adapt(rates, seconds - evaluated.seconds, train, instruct), evaluated


def available(minutes: float, preparation: float) -> float:
    """Seconds for the stages of a tour of `minutes` whose preparation is over."""
    whole = 60.0 * minutes
    return max(whole * (1.0 - RESERVE) - preparation, whole * LEAST_SHARE)


def _evaluate(rates: Rates, seconds: float, held_out: int, general: bool, questions: bool) -> EvaluatePlan:
    wanted = {"documents": min(DOCUMENTS, held_out), "general": GENERAL * general, "questions": QUESTIONS * questions}
    least = {"documents": LEAST_DOCUMENTS, "general": LEAST_DOCUMENTS, "questions": LEAST_QUESTIONS}

    def cost(items: Mapping[str, int]) -> float:
        """Before and after."""
        texts = (items["documents"] + items["general"]) * rates.tokens_a_document / rates.score_tokens_per_second
        return 2 * (texts + items["questions"] / rates.answers_per_second)

    share = min(1.0, seconds / cost(wanted))
    items = {name: min(count, max(least[name], int(share * count))) for name, count in wanted.items()}
    return EvaluatePlan(seconds=math.ceil(cost(items)), **items)


def _adapt(rates: Rates, seconds: float, train: int, instruct: bool) -> AdaptPlan:
    seconds = max(seconds, 1.0)
    curve_document = (CURVE_POINTS + 2) * rates.tokens_a_document / rates.score_tokens_per_second
    watched = min(CURVE_DOCUMENTS, max(1, int(CURVE_SHARE * seconds / curve_document)))
    tokens = max(seconds - watched * curve_document, 0.5 * seconds) * rates.train_tokens_per_second
    taught = INSTRUCTION_SHARE * tokens if instruct else 0.0
    examples = EXAMPLES_PER_STEP
    while examples > 1 and (tokens - taught) / rates.tokens_a_row < LEAST_STEPS * examples:
        examples //= 2
    instruction_step = examples * rates.tokens_an_instruction_row
    instruction_steps = min(INSTRUCTION_STEPS, max(4, int(taught / instruction_step))) if instruct else 0
    left = tokens - instruction_steps * instruction_step
    rows = train * rates.rows_a_document
    most = math.ceil(MAX_PASSES * rows / examples)
    corpus_steps = max(4, min(most, int(left / (examples * rates.tokens_a_row))))
    used = corpus_steps * examples * rates.tokens_a_row + instruction_steps * instruction_step
    return AdaptPlan(
        seconds=math.ceil(used / rates.train_tokens_per_second + watched * curve_document),
        examples_per_step=examples,
        documents=min(train, math.ceil(corpus_steps * examples / rates.rows_a_document)),
        curve_documents=watched,
        corpus_steps=corpus_steps,
        instruction_rows=round(instruction_steps * examples * INSTRUCTIONS_A_ROW),
        instruction_steps=instruction_steps,
    )
