"""The online-offline gap (arXiv 2405.08448): a policy's fresh answers, labelled by a judge that has learnt, against
pairs that people gave, labelled by the truth, at equal distance from the policy that both began with.

A small policy describes people, right and wrong. Runs are alike but for where their pairs come from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.online_offline_gap import GapConfig, Materials, gap
from maypole.align.online_offline_gap.config import OFFLINE, ONLINE, SHUFFLED
from maypole.align.online_offline_gap.curves import Point, peak
from maypole.align.online_offline_gap.fixed import labelled
from maypole.claims.descriptions import LONGEST, Corner, Schooling, answers, first_policy, well_formed
from maypole.claims.effects import Effect, Part
from maypole.claims.learnt_judge import Contest, Learning, LearntJudge, learnt_judge, told_contests
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.engine import Engine
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.village.describe import describe_prompt, gold_reward, subject_of
from maypole.village.draws import Draws

STATEMENT = (
    "With one loss (IPO of sums), optimiser and number of steps, a policy that learns from its own fresh answers, "
    "labelled by a reward model, wins more against the policy it began with than one that learns from fixed pairs with "
    "the truth's own labels: at its best, and at equal distance, near and far. Its own rows in their order give the "
    "same weights again, bit for bit; the same rows shuffled win less. The reward model must agree with the truth on "
    "0.80 of unseen pairs; the control is a weak one, with which the lead is gone. Left out: accuracies on pairs, "
    "which are reported and decide nothing (with a strong judge the sheet saw their dissociation from wins vanish), "
    "and quality, best of two, proximity and scale, for which the sheet has no rule at this size."
)
GATE = 0.80
"""Of the reward model's agreement with the truth; below it the sheet found online training to fail."""
WEAK = 0.75
"""Agreement of the weak one, at most."""
AT_BEST, AT_EQUAL_DISTANCE, BY_ORDER = 0.03, 0.02, 0.03
NEAR, FAR = (1.5, 2.5), (2.5, 4.0)
"""Nats from the first policy, within which the points nearest to each other are compared."""
CALLED_EQUAL = 1.5
"""Distances from the start whose ratio is below this are compared."""
WELL_FORMED = 0.9
TIGHT = 0.1
"""The beta of which the sheet measured two seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the runs and of what is measured."""

    schooling: Schooling = Schooling()
    pairs: int = 16_000
    held_out: int = 1000
    prompts: int = 768  # to answer, and to be measured on
    betas: tuple[float, ...] = (TIGHT, 0.03)
    steps: int = 240
    eval_every: int = 60
    examples_per_step: int = 48
    learning_rate: float = 5e-4
    judge: Learning = Learning(steps=2400, examples_per_step=64, learning_rate=1e-3)
    weak_pairs: int = 3000
    weak: Learning = Learning(steps=300, examples_per_step=64, learning_rate=1e-3)


@dataclass(frozen=True, slots=True)
class Truth:
    """R: right minus wrong minus repeated clauses, and one less without an end."""

    corner: Corner

    def __call__(self, prompts: list, completions: list, **columns: list) -> list[float | None]:
        return [
            gold_reward(self.corner, subject_of(prompt), said) - (not said.rstrip().endswith("."))
            for prompt, said in zip(prompts, completions, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Found:
    """What the runs with one reward model measured: points by arm, and that model's agreement with the truth."""

    points: list[Point]
    agreement: float
    replayed: float
    folder: Path

    def of(self, arm: str, beta: float | None = None) -> list[Point]:
        return [p for p in self.points if p["arm"] == arm and beta in (None, p["beta"])]

    def last(self, arm: str, beta: float) -> Point:
        return self.of(arm, beta)[-1]


class Study:
    """The corner with its first policy, what people said of it, and whoever judges that."""

    def __init__(self, seed: int, workdir: Path, sizes: Sizes) -> None:
        self.seed, self.workdir, self.sizes = seed, workdir, sizes
        self.corner = Corner(seed)
        self.truth = Truth(self.corner)
        self.start = first_policy(self.corner, seed, workdir / "first", sizes.schooling)
        self.pairs, self.unseen = self._told(sizes.pairs, "pairs"), self._told(sizes.held_out, "unseen")

    def _told(self, count: int, name: str) -> Dataset:
        contests: list[Contest] = told_contests(self.corner, Draws(self.seed, name), count)
        return self._rows([{"prompt": describe_prompt(n), "chosen": a, "rejected": b} for n, a, b in contests], name)

    def _rows(self, rows: list[dict[str, Any]], name: str) -> Dataset:
        made = Dataset.from_list(rows)
        made._fingerprint = digest(name, str(self.seed), str(len(rows)))
        return made

    def config(self, *experiments: str, betas: tuple[float, ...] | None = None) -> GapConfig:
        sizes = self.sizes
        return GapConfig(
            experiments=experiments, betas=betas or sizes.betas, rates=(1.0,), steps=sizes.steps,
            eval_every=sizes.eval_every, max_tokens=LONGEST, labels="drawn",
        )  # fmt: skip

    def judge(self, pairs: int, learning: Learning, name: str) -> LearntJudge:
        """A reward model that has seen the first `pairs` pairs with the truth's labels."""
        config = self.config("gap")
        learnt, _ = labelled(self.pairs.select(range(pairs)), self.truth, config, "drawn", seed=derive(self.seed, name))
        unseen, _ = labelled(self.unseen, self.truth, config, "hard", seed=self.seed)
        rows = self._rows(learnt, f"labelled for {name}"), self._rows(unseen, "unseen, labelled")
        return learnt_judge(self.start, *rows, self.seed, self.workdir / name, learning)

    def runs(self, judge: LearntJudge, config: GapConfig, name: str) -> Found:
        sizes = self.sizes
        train = TrainConfig(
            learning_rate=sizes.learning_rate, examples_per_step=sizes.examples_per_step, precision="fp32",
            lr_scheduler_type="constant", max_grad_norm=0.0, save_steps=10_000,
        )  # fmt: skip
        prompts = self.corner.prompts(sizes.prompts)
        prompts._fingerprint = digest("prompts", str(self.seed), str(sizes.prompts))
        materials = Materials(
            policy=self.start, prompts=prompts, pairs=self.pairs, proxy=judge.reward, judge=self.truth,
            eval_prompts=prompts, held_out=self.unseen,
        )  # fmt: skip
        made = gap(materials, config, train, out=self.workdir / name, seed=self.seed)
        points = pq.read_table(made.path / "table.parquet").to_pylist()
        equal = json.loads((made.path / "report.json").read_text())["replay_equals_online"].values()
        return Found(points, judge.accuracy, sum(equal) / max(len(equal), 1), made.path)


def run(seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """One seed, with a reward model that is good."""
    study = Study(seed, workdir, sizes)
    good = study.judge(sizes.pairs, sizes.judge, "judge")
    found = study.runs(good, study.config("gap", "coverage", "classification"), "runs")
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    copyfile(found.folder / "gap.svg", workdir / "figures" / "online-offline-gap.svg")
    formed = _formed(study.corner, study.start, seed)
    return [
        Effect("the first policy speaks", "answers well formed", formed, None, WELL_FORMED, "ours>=", control=True),
        Effect("the judge is good", "agrees with the truth", found.agreement, None, GATE, "ours>=", control=True),
        *_wins(found),
        *_order(found, sizes),
    ]


def weak(seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """The same at one beta with a reward model that has seen little."""
    study = Study(seed, workdir, sizes)
    judge = study.judge(sizes.weak_pairs, sizes.weak, "judge")
    found = study.runs(judge, study.config("gap", betas=(TIGHT,)), "runs")
    return [
        Effect("the judge is weak", "agrees with the truth", found.agreement, None, WEAK, "ours<=", control=True),
        _best(found, "online not above offline", 0.0, "difference<="),
    ]


def _formed(corner: Corner, start: LanguageModel, seed: int) -> float:
    return well_formed(corner, answers(Engine(start), corner.names, 16, derive(seed, "formed")))


def _best(found: Found, name: str, threshold: float, rule: Any) -> Effect:
    ours, theirs = (peak(found.of(arm))["win_rate"] for arm in (ONLINE, OFFLINE))
    return Effect(name, "wins at the best point", ours, theirs, threshold, rule, control=rule == "difference<=")


def _wins(found: Found) -> list[Effect]:
    made = [_best(found, "online above offline", AT_BEST, "difference>=")]
    for low, high in (NEAR, FAR):
        ours, theirs = nearest(found.of(ONLINE), found.of(OFFLINE), low, high)
        metric = f"wins at {low} to {high} nats"
        wins, other = ours["win_rate"], theirs["win_rate"]
        made.append(Effect("online above offline", metric, wins, other, AT_EQUAL_DISTANCE, "difference>="))
        metric = f"KL of those points, at {low} to {high} nats"
        made.append(Effect("as far away", metric, ours["kl"], theirs["kl"], CALLED_EQUAL, "ratio<=", control=True))
        made.append(Effect("no nearer", metric, ours["kl"], theirs["kl"], 1 / CALLED_EQUAL, "ratio>=", control=True))
    return made


def nearest(ours: Sequence[Point], theirs: Sequence[Point], low: float, high: float) -> tuple[Point, Point]:
    """Of the points of each between low and high the two that are as near to each other in distance as any; who has
    none there has the one that is nearest to the middle."""
    inside = [
        [point for point in points if low <= point["kl"] <= high] or [_middle(points, low, high)]
        for points in (ours, theirs)
    ]
    return min(((a, b) for a in inside[0] for b in inside[1]), key=lambda pair: abs(pair[0]["kl"] - pair[1]["kl"]))


def _middle(points: Sequence[Point], low: float, high: float) -> Point:
    return min(points, key=lambda point: abs(point["kl"] - (low + high) / 2))


def _order(found: Found, sizes: Sizes) -> list[Effect]:
    """What the order of the online run's own rows does."""
    name, metric = "its own rows in their order are the same run", "share with the same weights, bit for bit"
    made = [Effect(name, metric, found.replayed, None, 1.0, "ours>=", control=True)]
    for beta in sizes.betas:
        ours, dealt = (found.last(arm, beta)["win_rate"] for arm in (ONLINE, SHUFFLED))
        metric = f"wins at the end, β={beta:g}"
        made.append(Effect("online above its own rows shuffled", metric, ours, dealt, BY_ORDER, "difference>="))
    return made


PARTS = {"good-judge": Part(run), "weak-judge": Part(weak)}
