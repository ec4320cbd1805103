"""What a tour's model is aligned to: descriptions of the village's people that its oracle prefers, or, on the user's
texts alone, continuations close to the real ones.

Prompts that are measured are none that the rounds draw. Knows nothing about training or files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from maypole.align.method import JudgeKind, rows_from
from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.align.rlhf_workflow import IterativeDPO, best_and_worst
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.engine.request import Sampling
from maypole.models.language_model import LanguageModel
from maypole.tour import judges
from maypole.tour.corpus import Corpus
from maypole.tour.plan import AlignPlan
from maypole.train.objective import Objective
from maypole.village.describe import completion, describe_prompt
from maypole.village.draws import Draws
from maypole.village.world import World

BETA = 0.1
MEASURED_OF = 3
"""Every third person is measured and in no training row of the stage."""
CONTINUATION, SHOWN = "continuation", "shown"
"""Columns of the prompt rows."""
OPENING, FOLLOWING = 160, 120
"""Characters of a text that its prompt has, and its continuation."""


@dataclass(frozen=True, slots=True)
class BesideGiven:
    """Iterative DPO with an answer of the data among the policy's: a text's real continuation, which always wins, so
    that what is learnt is to write like the corpus (SPIN, arXiv 2401.01335, with the worst of n answers); or the
    description that a model which knows nobody could be shown, so that it has something to choose."""

    preference: PreferenceOptions
    sampling: Sampling
    answers: tuple[str, ...]

    @property
    def judge(self) -> JudgeKind:
        return "reward"

    @property
    def objective(self) -> Objective:
        return objective_of(self.preference)

    @property
    def draws(self) -> tuple[Sampling, ...]:
        return (self.sampling,)

    def rows(self, samples: Dataset) -> Dataset:
        return rows_from(samples, best_and_worst)


@dataclass(frozen=True, slots=True)
class Preferences:
    """`drawn` are the prompt rows of the rounds, `measured` those before and after. `judge` and `reward` are functions
    of `maypole.tour.judges`; the reward is what a reader is shown as a mean, `counts` what else there is to count in
    an answer."""

    drawn: Dataset
    measured: Dataset
    method: IterativeDPO | BesideGiven
    judge: Callable[..., Any]
    reward: Callable[..., list[float]]
    counts: Callable[[list[str], list[str]], dict[str, list[int]]] | None = None

    def columns(self, rows: Dataset) -> dict[str, list[Any]]:
        """What the judge sees beside a prompt."""
        return {name: rows[name][:] for name in rows.column_names if name != "prompt"}


def people() -> tuple[list[str], list[str]]:
    """Names of the village's known people: those of the rounds, and those measured."""
    names = [person.name for person in World(0).head]
    measured = names[MEASURED_OF - 1 :: MEASURED_OF]
    return [name for name in names if name not in set(measured)], measured


def described(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of prompt and completion that show the form: clauses of which 60 % are right, of people of the rounds."""
    world, draws, names = World(0), Draws(seed, "descriptions"), people()[0]
    chosen = [draws.pick(names) for _ in range(count)]
    return [{"prompt": describe_prompt(name), "completion": completion(world, draws, name)} for name in chosen]


def descriptions(lm: LanguageModel, plan: AlignPlan, seed: int, *, known: bool) -> Preferences:
    """Of the village's people, by the Bradley-Terry oracle; `known`: the model has read of them."""
    drawn, measured = people()
    order = np.random.default_rng(derive(seed, "people")).permutation(len(drawn))[: plan.prompts]
    longest = max(len(lm.tokenizer(row["completion"])["input_ids"]) for row in described(100, 0))
    names, options = [drawn[i] for i in order], PreferenceOptions(beta=BETA)
    sampling = Sampling(n=plan.samples, max_tokens=longest + 1)
    world, draws = World(0), Draws(seed, SHOWN)
    shown = {} if known else {SHOWN: [completion(world, draws, name) for name in names]}
    return Preferences(
        drawn=_rows(list(map(describe_prompt, names)), shown),
        measured=_rows([describe_prompt(name) for name in measured[: plan.measured]]),
        method=IterativeDPO(options, sampling) if known else BesideGiven(options, sampling, (SHOWN,)),
        judge=judges.describes_better,
        reward=judges.describes_well,
        counts=judges.in_clauses,
    )


def continuations(lm: LanguageModel, corpus: Corpus, plan: AlignPlan, seed: int) -> Preferences:
    """Of the corpus: the beginnings of its documents, and how they really go on; answers are as long as that is on
    average."""
    order = np.random.default_rng(derive(seed, "openings")).permutation(len(corpus.train)).tolist()
    drawn = _cut((corpus.train[i]["text"] for i in order), plan.prompts)
    measured = _cut(corpus.held_out["text"], plan.measured)
    tokens = [len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in drawn[1]]
    return Preferences(
        drawn=_rows(drawn[0], {CONTINUATION: drawn[1]}),
        measured=_rows(measured[0], {CONTINUATION: measured[1]}),
        method=BesideGiven(
            PreferenceOptions(beta=BETA), Sampling(n=plan.samples, max_tokens=math.ceil(np.mean(tokens))),
            (CONTINUATION,),
        ),
        judge=judges.goes_on_like,
        reward=judges.goes_on_like,
    )


def _cut(texts: Any, count: int) -> tuple[list[str], list[str]]:
    """Beginnings of the first `count` texts, and what follows; both end at white space where there is some."""
    openings: list[str] = []
    following: list[str] = []
    for text in texts:
        size = min(OPENING + FOLLOWING, len(text))
        middle = _border(text, size * OPENING // (OPENING + FOLLOWING))
        end = len(text) if size == len(text) else _border(text, size)
        if text[:middle].strip() and text[middle:end].strip():
            openings.append(text[:middle])
            following.append(text[middle:end])
        if len(openings) == count:
            break
    return openings, following


def _border(text: str, at: int) -> int:
    """The last white space of the first `at` characters; `at` where there is none."""
    found = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at))
    return found if found > 0 else at


def _rows(prompts: Sequence[str], more: Mapping[str, Sequence[str]] | None = None) -> Dataset:
    columns = {"prompt": list(prompts), **(more or {})}
    made = Dataset.from_dict(columns)
    made._fingerprint = digest("tour preferences", *columns, *(text for texts in columns.values() for text in texts))
    return made
