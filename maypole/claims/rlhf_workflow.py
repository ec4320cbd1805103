"""RLHF Workflow (arXiv 2405.07863): a reward model learnt from pairs, and round by round the best of eight answers
against the worst, beside DPO on given pairs.

A small policy describes people, right and wrong; whoever compares two descriptions likes right clauses, and likes long
answers too. `learnt` is that experiment; `reward` trains the reward model beside trl's trainer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.online import online
from maypole.align.preference import Pairs
from maypole.align.preference_options import PreferenceOptions
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.align.rlhf_workflow_options import WorkflowOptions
from maypole.claims.curve import Curve, Points, at_its_end, points_once
from maypole.claims.descriptions import LONGEST, Corner, Schooling, answers, first_policy, well_formed
from maypole.claims.effects import Effect, Part
from maypole.claims.learnt_judge import (
    Gold,
    Learning,
    LearntJudge,
    drawn_contests,
    labelled,
    learnt_judge,
    preferred,
    told_contests,
)  # fmt: skip
from maypole.claims.reward_beside_trl import reward
from maypole.claims.rlhf_workflow_picture import picture
from maypole.core.seeds import derive
from maypole.engine import Engine, Sampling
from maypole.evaluate.kl import kl
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.village.describe import Oracle, describe_prompt, oracle
from maypole.village.draws import Draws

STATEMENT = (
    "Where pairs are labelled by somebody who likes right clauses and long answers, five rounds of DPO on the best "
    "and the worst of eight answers, chosen by a reward model that has learnt from 16,000 such pairs of the first "
    "policy's answers, win more against the first policy, by the truth, than DPO on 6,000 given pairs at its best, "
    "and no less than DPO on the judge's own pairs; DPO on given pairs ends no higher than it stood before. A price "
    "of 0.1 for each token makes answers shorter at nearly the same gold reward. Controls: of unseen pairs the reward "
    "model names in four of five the answer that the labeller likes better (labels are drawn, so that the labeller "
    "itself agrees with about four of five of them); with a judge learnt from labels that like length far too well "
    "the reward rises and the truth does not. And packed Bradley-Terry training comes as far as trl's RewardTrainer "
    "on as many steps. Left out: the paper's benchmarks, which need its models."
)
BETA = 0.4
ROUNDS, STEPS = 5, 30
MISLED_ROUNDS = 3
LIKES_LENGTH, LIKES_LENGTH_TOO_WELL = 0.25, 0.6
"""What a clause more is worth to who labels, beside 1 for a right one and -1 for a wrong one."""
PRICE = 0.1
GATE, AHEAD, SHORTER, AS_GOOD = 0.8, 0.05, 0.95, 0.3
WELL_FORMED = 0.9
OFFLINE, OWN, ITERATIVE = "DPO on given pairs", "DPO on the judge's pairs", "iterative"
PRICED, MISLED = "iterative, length priced", "iterative, bad judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of what is learnt from and of what is measured."""

    judged: int = 16_000  # pairs behind the reward model
    unseen: int = 2_000
    given: int = 6_000  # pairs behind DPO on given pairs
    prompts: int = 960  # a round
    examples_per_step: int = 64
    steps: int = STEPS  # a round
    learning_rate: float = 3e-4
    schooling: Schooling = Schooling()
    said: int = 34  # answers about each person behind a rate of winning, 816 in all
    rivals: int = 64  # of the first policy, to each
    learning: Learning = Learning()
    bad_learning: Learning = Learning(steps=400)


class Trial:
    """The first policy, the pairs that were labelled, and how policies stand by the truth."""

    def __init__(self, seed: int, workdir: Path, sizes: Sizes) -> None:
        self.seed, self.workdir, self.sizes = seed, workdir, sizes
        self.corner = Corner(seed)
        self.gold = Gold(self.corner)
        self.start = first_policy(self.corner, seed, workdir / "first", sizes.schooling)
        self.rivals = answers(Engine(self.start), self.corner.names, sizes.rivals, derive(seed, "rivals"))
        self.contests = drawn_contests(
            Engine(self.start), self.corner, sizes.judged + sizes.unseen, derive(seed, "judged")
        )  # fmt: skip

    def judge(self, labeller: Oracle, name: str, learning: Learning) -> LearntJudge:
        """A reward model that has learnt from pairs of the first policy's answers, and knows nothing of the truth."""
        unseen = preferred(self.contests[: self.sizes.unseen], labeller)
        out = self.workdir / name
        return learnt_judge(self.start, self._judged(labeller), unseen, self.seed, out, learning)

    def offline(self, labeller: Oracle) -> Points:
        """DPO on answers that people gave."""
        draws = Draws(self.seed, "given")
        pairs = labelled(told_contests(self.corner, draws, self.sizes.given), labeller, draws)
        return points_once(self.workdir / OFFLINE, lambda: self._dpo(pairs, OFFLINE))

    def on_judged(self, labeller: Oracle) -> Points:
        """DPO on the pairs that the judge has learnt from."""
        return points_once(self.workdir / OWN, lambda: self._dpo(self._judged(labeller), OWN))

    def _judged(self, labeller: Oracle) -> Dataset:
        return labelled(self.contests[self.sizes.unseen :], labeller, Draws(self.seed, "labels"))

    def _dpo(self, pairs: Dataset, name: str) -> Points:
        lm = self.start.copy()
        curve = self._curve(lm)
        train = self._config(ROUNDS * self.sizes.steps)
        fit(
            lm, pairs, Pairs(PreferenceOptions(beta=BETA)), train, out=self.workdir / name, reference="initial",
            seed=derive(self.seed, "training"), callbacks=[curve],
        )  # fmt: skip
        return self._ended(curve.points, lm)

    def iterative(self, judge: LearntJudge, name: str, price: float = 0.0, rounds: int = ROUNDS) -> Points:
        """Through the online loop, held to the first policy."""
        return points_once(self.workdir / name, lambda: self._iterative(judge, name, price, rounds))

    def _iterative(self, judge: LearntJudge, name: str, price: float, rounds: int) -> Points:
        lm = self.start.copy()
        curve = self._curve(lm)
        method = IterativeDPO(
            PreferenceOptions(beta=BETA), Sampling(n=8, max_tokens=LONGEST), WorkflowOptions(length_penalty=price)
        )
        online(
            lm, self.corner.prompts(rounds * self.sizes.prompts), judge.reward, method,
            OnlineConfig(rounds=rounds, reference="initial"), self._config(rounds * self.sizes.steps),
            out=self.workdir / name, seed=derive(self.seed, "rounds"), callbacks=[curve],
        )  # fmt: skip
        return self._ended(curve.points, lm)

    def best_of_eight(self, name: str) -> float:
        """How often the answer that its judge likes best of a prompt's eight in the first round beats the others."""
        samples = pq.read_table(self.workdir / name / "rounds" / "000" / "samples.parquet").to_pylist()
        won = []
        for sample in samples:
            gold = np.array(self.gold([sample["prompt"]] * 8, sample["completions"]))
            best = int(np.argmax(sample["scores"]))
            won.append(_won(gold[[best]], np.delete(gold, best)))
        return float(np.mean(won))

    def _config(self, steps: int) -> TrainConfig:
        sizes = self.sizes
        return TrainConfig(
            learning_rate=sizes.learning_rate, max_steps=steps, lr_scheduler_type="constant", precision="fp32",
            examples_per_step=sizes.examples_per_step, gradient_checkpointing=False, save_steps=steps,
        )  # fmt: skip

    def _curve(self, lm: LanguageModel) -> Curve:
        return Curve(self.sizes.steps, lambda: self.standing(lm))

    def standing(self, lm: LanguageModel) -> dict[str, float]:
        """Rate of winning against the first policy's answers by gold reward, its mean, and tokens of an answer."""
        said = answers(Engine(lm), self.corner.names, self.sizes.said, derive(self.seed, "contest"))
        wins, rewards, tokens = [], [], []
        for name, some in said.items():
            ours, theirs = (
                np.array(self.gold([describe_prompt(name)] * len(of), of)) for of in (some, self.rivals[name])
            )
            wins.append(_won(ours, theirs))
            rewards.append(float(ours.mean()))
            tokens += [len(lm.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in some]
        formed = well_formed(self.corner, said)
        means = {"wins": wins, "gold": rewards, "tokens": tokens}
        return {**{k: float(np.mean(v)) for k, v in means.items()}, "formed": formed}

    def _ended(self, points: Points, lm: LanguageModel) -> Points:
        """With the distance from the first policy at the end."""
        prompts = list(map(describe_prompt, self.corner.names))
        far = kl(lm, self.start, prompts, max_tokens=LONGEST, samples=16, seed=self.seed).per_completion
        return at_its_end(points, kl=far)


def _won(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of every one of ours against every one of theirs; a tie is half."""
    return float((np.sign(ours[:, None] - theirs[None, :]) + 1).mean() / 2)


def learnt(seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """One seed: a reward model, DPO on given pairs, and three iterative runs."""
    trial = Trial(seed, workdir, sizes)
    likes = {bias: oracle(trial.corner, "length-biased", bias) for bias in (LIKES_LENGTH, LIKES_LENGTH_TOO_WELL)}
    good = trial.judge(likes[LIKES_LENGTH], "judge", sizes.learning)
    bad = trial.judge(likes[LIKES_LENGTH_TOO_WELL], "bad judge", sizes.bad_learning)
    points = {
        OFFLINE: trial.offline(likes[LIKES_LENGTH]),
        OWN: trial.on_judged(likes[LIKES_LENGTH]),
        ITERATIVE: trial.iterative(good, ITERATIVE),
        PRICED: trial.iterative(good, PRICED, PRICE),
        MISLED: trial.iterative(bad, MISLED, rounds=MISLED_ROUNDS),
    }
    rounds = json.loads((workdir / MISLED / "rounds.json").read_text())
    pleased = [line["score"] for line in rounds]
    before = trial.standing(trial.start)
    extra = {"best of eight": {name: trial.best_of_eight(name) for name in (ITERATIVE, MISLED)}}
    kept = {"before": before, "accuracy": {"good": good.accuracy, "bad": bad.accuracy}, **extra, **points}
    (workdir / "measured.json").write_text(json.dumps(kept))
    picture({name: {0: before, **some} for name, some in points.items()}, workdir / "figures")
    return effects(points, good.accuracy, before, pleased, extra["best of eight"][MISLED])


def effects(
    points: Mapping[str, Points], accuracy: float, before: Mapping[str, float], pleased: list[float], misled: float
) -> list[Effect]:
    """What the numbers must be; `pleased`: the bad judge's mean score in each round, `misled`: how its best do."""
    wins = {name: [point["wins"] for point in some.values()] for name, some in points.items()}
    last = {name: list(some.values())[-1] for name, some in points.items()}
    peak, metric = max(wins[OFFLINE]), "gold wins against the first policy"
    own, priced = last[ITERATIVE], last[PRICED]
    return [
        Effect("the first policy speaks", "answers well formed", before["formed"], None, WELL_FORMED, "ours>=", True),
        Effect("the judge has learnt", "accuracy on unseen pairs", accuracy, None, GATE, "ours>=", control=True),
        Effect("iterative beside given pairs at their best", metric, own["wins"], peak, AHEAD, "difference>="),
        Effect("iterative beside the judge's pairs at their best", metric, own["wins"], max(wins[OWN]), 0.0,
               "difference>="),
        Effect("priced beside given pairs at their best", metric, priced["wins"], peak, AHEAD, "difference>="),
        Effect(
            "given pairs end no higher", f"{metric}, at the end and before", wins[OFFLINE][-1],
            max(wins[OFFLINE][:-1]), 0.0, "difference<=",
        ),
        Effect("the price makes answers shorter", "tokens", priced["tokens"], own["tokens"], SHORTER, "ratio<="),
        Effect("and no worse", "gold reward", priced["gold"], own["gold"], -AS_GOOD, "difference>="),
        Effect("a bad judge's best of eight", "gold wins against the others", misled, None, 0.5, "ours<=", True),
        Effect("a bad judge is pleased", "its score, last round and first", pleased[-1], pleased[0], 0.0,
               "difference>=", control=True),
        Effect("a bad judge does not help", metric, last[MISLED]["wins"], peak, 0.0, "difference<=", control=True),
    ]  # fmt: skip


PARTS: dict[str, Part | None] = {"learnt": Part(learnt), "reward": Part(reward)}
