"""Who judges descriptions in the corner: the truth itself, and a reward model that has learnt from labelled pairs.

Knows nothing about policies that are trained by them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from maypole.claims.descriptions import Corner, answers
from maypole.core.seeds import derive
from maypole.engine import Engine
from maypole.evaluate.pair_accuracy import pair_accuracy
from maypole.evaluate.reward_model import RewardModel
from maypole.models.language_model import LanguageModel
from maypole.models.score_head import with_score_head
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.reward import BradleyTerry
from maypole.village.describe import Oracle, describe_prompt, gold_reward, subject_of
from maypole.village.draws import Draws

AT_A_TIME = 32
"""Answers about each person."""

Contest = tuple[str, str, str]
"""A person, and two answers about them."""


@dataclass(frozen=True, slots=True)
class Gold:
    """The reward that nobody learns from: right minus wrong minus repeated clauses."""

    corner: Corner

    def __call__(self, prompts: list, completions: list, **columns: list) -> list[float | None]:
        return [gold_reward(self.corner, subject_of(p), c) for p, c in zip(prompts, completions, strict=True)]


def told_contests(corner: Corner, draws: Draws, count: int) -> list[Contest]:
    """Answers as people give them, no two alike in a contest."""
    found: list[Contest] = []
    while len(found) < count:
        name = draws.pick(corner.names)
        first, second = corner.answer(draws, name), corner.answer(draws, name)
        if first != second:
            found.append((name, first, second))
    return found


def drawn_contests(policy: Engine, corner: Corner, count: int, seed: int) -> list[Contest]:
    """Answers that a policy gives, everybody as often, no two alike in a contest."""
    found: list[Contest] = []
    while len(found) < count:
        said = answers(policy, corner.names, AT_A_TIME, derive(seed, "contests", len(found)))
        pairs = ((name, *two) for name, some in said.items() for two in zip(some[::2], some[1::2]))
        found += [contest for contest in pairs if contest[1] != contest[2]]
    return found[:count]


def labelled(contests: Iterable[Contest], judge: Oracle, draws: Draws) -> Dataset:
    """PAIR rows: who is chosen is a draw from the judge's probability."""
    rows = []
    for name, first, second in contests:
        prompt = describe_prompt(name)
        won = draws.chance(judge.probability(prompt, first, second))
        chosen, rejected = (first, second) if won else (second, first)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


def preferred(contests: Iterable[Contest], judge: Oracle) -> Dataset:
    """PAIR rows: chosen is the one that the judge likes better, where it likes one; nothing is drawn."""
    rows = []
    for name, first, second in contests:
        prompt = describe_prompt(name)
        probability = judge.probability(prompt, first, second)
        if probability != 0.5:
            chosen, rejected = (first, second) if probability > 0.5 else (second, first)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How a reward model learns."""

    steps: int = 2400
    examples_per_step: int = 64
    learning_rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class LearntJudge:
    """A reward model, and how often it prefers the chosen answer of pairs that it has not seen."""

    reward: RewardModel
    accuracy: float


def learnt_judge(
    start: LanguageModel, pairs: Dataset, unseen: Dataset, seed: int, out: Path, learning: Learning = Learning()
) -> LearntJudge:
    """A Bradley-Terry judge on the trunk of `start`, which is left as it is."""
    lm = with_score_head(start.copy(), seed=derive(seed, "judge's head"))
    config = TrainConfig(
        learning_rate=learning.learning_rate, max_steps=learning.steps, lr_scheduler_type="cosine", warmup_ratio=0.05,
        examples_per_step=learning.examples_per_step, precision="fp32", save_steps=learning.steps,
    )  # fmt: skip
    fit(lm, pairs, BradleyTerry(), config, out=out, seed=derive(seed, "judge"))
    reward = RewardModel(Engine(lm))
    return LearntJudge(reward, pair_accuracy(unseen.to_list(), reward, seed=seed).accuracy)
