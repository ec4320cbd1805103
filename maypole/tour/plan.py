"""How much of everything fits into the minutes: arithmetic on what a probe measured, done once and kept in plan.json.

A stage takes its steps and items from the plan and never looks at the clock. Knows nothing about models or what the
stages do with their share.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from maypole.core.atomic import write_atomic
from maypole.core.errors import ArtifactError

RESERVE = 0.2
"""Of the minutes: kept for a machine that turns out slower than the probe."""
LEAST_SHARE = 0.3
"""Of the minutes: what the stages get even where reading and probing took the rest."""
EVALUATE_SHARE = 0.2
"""Of the stages' seconds, at most; what this and the next leave is for learning."""
CURATE_SHARE = 0.11
"""Of the stages' seconds: half a minute of six."""
ALIGN_SHARE = 0.15
"""Of the stages' seconds, at most."""
FORM_ROWS = 600
"""Answers that show the form; what stands beside them comes on top. After two thirds of that the village is less well
known, and the rounds spoil more of it."""
PROMPTS, OPENINGS = 128, 192
"""Of a round: people to describe, or beginnings of the user's texts."""
WAYS = ((3, 8, 4), (3, 4, 4), (3, 4, 2), (2, 2, 1))
"""Rounds, answers to each of their prompts, and to each prompt that is measured: the first that leaves time for nine
tenths of the prompts, else the last."""
MEASURED = 64
BESIDE_FORM = 3
"""Rows beside each answer that shows the form: its clauses are often wrong, and nothing else is to become so."""
LEAST_PROMPTS, LEAST_FORM_ROWS, LEAST_ROUND_STEPS = 8, 16, 4
SPARED = 10.0
"""Seconds that every tour can spare for preferences; where even the least takes longer than its share, none is made."""
DESCRIPTION_TOKENS, CONTINUATION_TOKENS = 16, 40
REFERENCE_COST = 4 / 3
"""A step on pairs reads each once more, for what the model said before."""
ANSWER_TOKENS = 8
"""Of the answers that the probe counts."""
SERVE_SHARE = 0.05
PARTS, LEAST_PARTS = 8, 2
"""Documents that the program reads."""
REPEATS = 5
"""Runs of it with and without sharing."""
PROMPT_TOKENS, ANSWERS_A_CALL = 200, 2
"""What a call costs: tokens read, and short answers, of which the probe tells how many a second holds."""
SCORING_SHARE = 0.45
"""Of the seconds of choosing, at most, goes into reading; what is left into what the choice did."""
TOKENS_READ = (32, 256)
"""Of a document, at least and at most: some words tell noise from text."""
LEAST_CANDIDATES = 200
KEEP, KEEP_OF_NOISE = 0.8, 0.5
"""Share of documents kept: of texts that nobody called noisy, and where half of them are known to be."""
TRIAL_DOCUMENTS = (8, 100)
"""Held-out documents, at least and at most, on which models that read all and what is kept are compared."""
TRIAL_STEPS = (4, 60)
TRIAL_EXAMPLES = 8
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
    """What a probe found. Rows are those of training: `rows_a_document` of the corpus, replayed ones among them. The
    reference is the small model by which texts are chosen."""

    train_tokens_per_second: float
    score_tokens_per_second: float
    reference_tokens_per_second: float
    answers_per_second: float
    tokens_a_document: float
    rows_a_document: float
    tokens_a_row: float
    tokens_an_instruction_row: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CuratePlan:
    """`documents` of the corpus and `noise` mixed in are scored by their first `tokens_read`, and the share `rate` of
    them is kept. `trial_steps` of `examples_per_step` documents show what that did, on `trial_documents` held out."""

    seconds: int
    documents: int
    noise: int
    tokens_read: int
    rate: float
    trial_steps: int
    trial_documents: int
    examples_per_step: int

    @property
    def kept(self) -> int:
        return round(self.rate * (self.documents + self.noise))


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
class AlignPlan:
    """`form_rows` answers show the form in `form_steps`, 0: the answers have none. In each of `rounds` (0: the stage is
    left out) the model gives `samples` answers to each of `prompts` and learns for `round_steps`; `measured_samples`
    answers to each of `measured` other prompts tell what that did."""

    seconds: int
    examples_per_step: int
    form_rows: int
    form_steps: int
    rounds: int
    prompts: int
    samples: int
    round_steps: int
    measured: int
    measured_samples: int

    @property
    def steps(self) -> int:
        return self.form_steps + self.rounds * self.round_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePlan:
    """Held-out documents of the corpus, texts on anything else, questions."""

    seconds: int
    documents: int
    general: int
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """Held-out documents that one program of many calls reads, and how often it runs with and without sharing."""

    seconds: int
    parts: int
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`asked` is what the tour was told, by name and by identity; `preparation` seconds went by before the plan."""

    asked: Mapping[str, Any]
    threads: int
    preparation: float
    rates: Rates
    curate: CuratePlan
    adapt: AdaptPlan
    align: AlignPlan
    serve: ServePlan
    evaluate: EvaluatePlan

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """ArtifactError where the file is not a tour's plan."""
        try:
            document = json.loads(path.read_bytes())
            kinds = {"rates": Rates, "curate": CuratePlan, "adapt": AdaptPlan, "align": AlignPlan,
                     "serve": ServePlan, "evaluate": EvaluatePlan}  # fmt: skip
            return cls(**{**document, **{name: kind(**document[name]) for name, kind in kinds.items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError("is not the plan of a tour", str(path), "name another --out") from error


def divide(
    rates: Rates,
    seconds: float,
    *,
    train: int,
    held_out: int,
    noise: bool,
    instruct: bool,
    general: bool,
    questions: bool,
) -> tuple[CuratePlan, AdaptPlan, AlignPlan, ServePlan, EvaluatePlan]:
    """`seconds` shared out: evaluation takes what it can use up to a fifth, choosing a ninth, preferences up to a
    seventh, serving what its few calls need up to a twentieth, learning has the rest.

    train, held_out: documents of the corpus. noise: whether as many documents that are none of it are mixed in.
    instruct, general, questions: whether there is such work at all.
    """
    evaluated = _evaluate(rates, EVALUATE_SHARE * seconds, held_out, general, questions)
    curated = _curate(rates, CURATE_SHARE * seconds, train, held_out, noise)
    served = _serve(rates, SERVE_SHARE * seconds, held_out)
    aligned = _align(rates, ALIGN_SHARE * seconds, curated.kept, held_out, instruct)
    left = seconds - evaluated.seconds - curated.seconds - aligned.seconds - served.seconds
    return curated, _adapt(rates, left, curated.kept, instruct), aligned, served, evaluated


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


def _serve(rates: Rates, seconds: float, held_out: int) -> ServePlan:
    call = PROMPT_TOKENS / rates.score_tokens_per_second + ANSWERS_A_CALL / rates.answers_per_second

    def cost(parts: int, repeats: int) -> float:
        """With and without sharing, each part and the whole, and one run of two calls before."""
        return call * (2 * repeats * (parts + 1) + 2)

    parts, repeats = min(PARTS, held_out), REPEATS
    while cost(parts, repeats) > seconds and (parts, repeats) != (min(LEAST_PARTS, held_out), 1):
        parts, repeats = (parts, repeats - 1) if repeats > 1 else (parts - 1, repeats)
    return ServePlan(seconds=math.ceil(cost(parts, repeats)), parts=parts, repeats=repeats)


def _curate(rates: Rates, seconds: float, train: int, held_out: int, noise: bool) -> CuratePlan:
    mixed = 2 if noise else 1
    read = SCORING_SHARE * seconds * rates.reference_tokens_per_second
    documents = min(train, max(LEAST_CANDIDATES, int(read / (mixed * TOKENS_READ[0]))))
    tokens_read = max(TOKENS_READ[0], min(TOKENS_READ[1], int(read / (mixed * documents))))
    scoring = mixed * documents * min(tokens_read, rates.tokens_a_document) / rates.reference_tokens_per_second
    trial_document = 2 * rates.tokens_a_document / rates.score_tokens_per_second
    trial = min(held_out, TRIAL_DOCUMENTS[1], max(TRIAL_DOCUMENTS[0], int(0.1 * seconds / trial_document)))
    left = max(seconds - scoring - trial * trial_document, 0.0)
    row = min(rates.tokens_a_document, TOKENS_READ[1])
    examples, (least, most) = TRIAL_EXAMPLES, TRIAL_STEPS
    while examples > 1 and left * rates.train_tokens_per_second < 2 * least * examples * row:
        examples //= 2
    step = 2 * examples * row / rates.train_tokens_per_second
    steps = max(least, min(most, int(left / step)))
    return CuratePlan(
        seconds=math.ceil(scoring + trial * trial_document + steps * step),
        documents=documents,
        noise=(mixed - 1) * documents,
        tokens_read=tokens_read,
        rate=KEEP_OF_NOISE if noise else KEEP,
        trial_steps=steps,
        trial_documents=trial,
        examples_per_step=examples,
    )


def _align(rates: Rates, seconds: float, train: int, held_out: int, instruct: bool) -> AlignPlan:
    most = {"form": FORM_ROWS, "prompts": PROMPTS, "measured": MEASURED}
    if not instruct:
        most = {"form": 0, "prompts": min(OPENINGS, train), "measured": min(MEASURED, held_out)}
    least = {"form": LEAST_FORM_ROWS, "prompts": LEAST_PROMPTS, "measured": LEAST_PROMPTS}
    tokens = DESCRIPTION_TOKENS if instruct else CONTINUATION_TOKENS
    answer = tokens / ANSWER_TOKENS / rates.answers_per_second

    def cost(items: Mapping[str, int], rounds: int, samples: int, measured: int) -> float:
        """The measured prompts are answered before and after every round, and read by the model as it was."""
        form = items["form"] * (1 + BESIDE_FORM) * rates.tokens_an_instruction_row / rates.train_tokens_per_second
        pair = REFERENCE_COST * 4 * tokens / rates.train_tokens_per_second
        each = samples * answer + pair
        return form + rounds * items["prompts"] * each + (rounds + 1) * items["measured"] * measured * answer

    if cost(least if instruct else {**least, "form": 0}, *WAYS[-1]) > max(seconds, SPARED):
        return AlignPlan(**dict.fromkeys((field.name for field in fields(AlignPlan)), 0))
    way = next((way for way in WAYS if seconds >= 0.9 * cost(most, *way)), WAYS[-1])
    share = min(1.0, seconds / cost(most, *way))
    items = {name: min(count, max(least[name], int(share * count))) for name, count in most.items()}
    examples = EXAMPLES_PER_STEP
    while examples > 1 and items["prompts"] < LEAST_ROUND_STEPS * examples:
        examples //= 2
    return AlignPlan(
        seconds=math.ceil(cost(items, *way)),
        examples_per_step=examples,
        form_rows=items["form"],
        form_steps=items["form"] * (1 + BESIDE_FORM) // examples,
        rounds=way[0],
        prompts=items["prompts"],
        samples=way[1],
        round_steps=math.ceil(items["prompts"] / examples),
        measured=items["measured"],
        measured_samples=way[2],
    )


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
