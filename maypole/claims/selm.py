"""SELM (arXiv 2405.19332, section 4): in a village where everybody tells a rumour, who finds out the truth?

All arms begin as one base, answer the same questions round by round through the real online loop, have three candidates
judged a question and take equally many steps; what differs is the optimism. `table` repeats the greedy and the sampled
form on free logits with plain gradient steps, where there is neither a network nor Adam.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maypole.align.config import OnlineConfig
from maypole.align.online import online
from maypole.align.preference_options import PreferenceOptions
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.align.selm import DeltaWatch, Selm
from maypole.align.selm_options import SelmOptions
from maypole.claims.curve import Curve, Points, points_once
from maypole.claims.effects import Effect, Part
from maypole.claims.rumour import Exam, Judge, Sizes, Village, base, load_policy
from maypole.claims.rumour_picture import picture
from maypole.claims.selm_table import table
from maypole.core.seeds import derive
from maypole.engine import Sampling
from maypole.train.config import TrainConfig

STATEMENT = (
    "Where everybody tells a rumour that a judge likes well, online DPO learns to tell it always; with the optimism "
    "term at alpha 0.2 the truth, which the judge likes best and the base says once in a hundred times, is found for "
    "more people and told at least three times as often, at no cost in reward, and with the wrong sign less often. So "
    "it is with the greedy answer of the round's start; with a drawn one it is told more often than without. No two "
    "people share a surname, or what is learnt of one would be learnt of a family. Each is "
    "measured beside its own alpha 0 and beside iterative DPO without ties. Controls: answers stay answers, and where "
    "the rumour is the truth optimism has nothing to find and costs reward. On a table of logits with plain gradient "
    "steps the greedy form works, the drawn one gains less, and alpha 1 destroys the policy. Answers are one token, "
    "and every round is a training run of its own. Left out: answers of three slots with short rounds, in which the "
    "sheet that these conditions come from measured no effect up to alpha 0.2; and the settings of the paper's models "
    "(beta 0.01, alpha 1e-3, learning rates of 5e-7), which move nothing this small."
)
BETA = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """An arm's rounds: every person is asked `each` times in each, three candidates are judged, and trained on."""

    rounds: int = 24
    each: int = 4
    candidates: int = 3
    batch: int = 96
    steps: int = 8  # a round: two passes over its questions
    learning_rate: float = 3e-4
    every: int = 3  # rounds between two exams
    world: Sizes = field(default_factory=Sizes)


class Arms:
    """One village and its base, and what became of the policies that began as it."""

    def __init__(self, seed: int, workdir: Path, course: Course, *, truthful: bool = False) -> None:
        self.seed, self.workdir, self.course = seed, workdir, course
        self.village = Village(seed, course.world, truthful=truthful)
        self.base = base(self.village, course.world, workdir / "base")
        lm = load_policy(self.base)
        self.before = Exam(self.village, Judge(self.village, seed), lm, 1)()
        self.points: dict[str, Points] = {}

    def run(self, name: str, method: Any) -> Mapping[str, float]:
        """Train by `method` through the online loop; how the policy stands at the end."""
        points = self.points[name] = points_once(self.workdir / name, lambda: self._train(name, method))
        return points[self.course.steps * self.course.rounds]

    def _train(self, name: str, method: Any) -> Points:
        course, lm = self.course, load_policy(self.base)
        questions = self.village.questions(course.each)
        judge = Judge(self.village, derive(self.seed, "judge", name))
        curve = Curve(course.steps * course.every, Exam(self.village, judge, lm, len(questions) * course.every))
        config = OnlineConfig(rounds=course.rounds, prompts_per_round=len(questions), reference="previous")
        train = TrainConfig(
            learning_rate=course.learning_rate, lr_scheduler_type="constant", max_steps=course.steps * course.rounds,
            optimizer="fresh", examples_per_step=course.batch, precision="fp32", gradient_checkpointing=False,
            save_steps=course.steps * course.rounds,
        )  # fmt: skip
        online(
            lm, questions, judge, method, config, train,
            out=self.workdir / name, seed=derive(self.seed, "training"), callbacks=[curve, DeltaWatch()],
        )  # fmt: skip
        return curve.points

    def selm(self, alpha: float, sample: Literal["greedy", "sample"] = "greedy") -> Mapping[str, float]:
        options = SelmOptions(
            alpha=alpha, optimism_sample=sample, samples=self.course.candidates - 1, answers=(), allow_negative=True
        )
        return self.run(f"{sample} {alpha:g}", Selm(options, PreferenceOptions(beta=BETA), Sampling(max_tokens=1)))

    def dpo(self) -> Mapping[str, float]:
        """Iterative DPO as `align online` runs it: equally many drawn candidates, no ties, as many steps."""
        sampling = Sampling(max_tokens=1, n=self.course.candidates)
        return self.run("iterative DPO", IterativeDPO(PreferenceOptions(beta=BETA), sampling))

    def keep(self) -> None:
        """The curves of all arms as numbers, and of those with a greedy answer, beside iterative DPO, as a picture."""
        (self.workdir / "curves.json").write_text(json.dumps({"before": self.before, **self.points}))
        shown = {name: points for name, points in self.points.items() if not name.startswith("sample")}
        (self.workdir / "figures").mkdir(exist_ok=True)
        (self.workdir / "figures" / "rounds.svg").write_text(picture(shown, self.course.steps))


TRUE, REWARD, FOUND = "P(true value)", "expected reward", "people whose true value was tried"


def rumour(seed: int, workdir: Path, course: Course = Course()) -> list[Effect]:
    """The optimism term on the greedy answer with both signs, and on a drawn one, whose candidates are others."""
    arms = Arms(seed, workdir, course)
    wrong, none, some, much = (arms.selm(alpha) for alpha in (-0.2, 0.0, 0.2, 0.4))
    dpo = arms.dpo()
    drawn, drawn_some, drawn_much = (arms.selm(alpha, "sample") for alpha in (0.0, 0.2, 0.4))
    arms.keep()
    tried = "discovered"
    made = [
        Effect("the base tells the rumour", "P(rumour)", arms.before["rumour"], None, 0.8, "ours>=", control=True),
        Effect("the base hardly tells the truth", TRUE, arms.before["true"], None, 0.03, "ours<=", control=True),
        Effect("alpha 0.2 beside 0", TRUE, some["true"], none["true"], 3.0, "ratio>="),
        Effect("alpha 0.2 costs no reward", REWARD, some["reward"], none["reward"], -0.01, "difference>="),
        Effect("alpha 0.2 tries more", FOUND, some[tried], none[tried], 0.05, "difference>="),
        Effect("alpha 0.4 beside 0", TRUE, much["true"], none["true"], 0.0, "difference>="),
        Effect("the wrong sign beside 0", TRUE, wrong["true"], none["true"], 0.0, "difference<="),
        Effect("the wrong sign tries less", FOUND, wrong[tried], none[tried], 0.0, "difference<="),
        Effect("alpha 0.2 beside iterative DPO", TRUE, some["true"], dpo["true"], 0.0, "difference>="),
        Effect("drawn: alpha 0.2 beside 0", TRUE, drawn_some["true"], drawn["true"], 0.0, "difference>="),
        Effect("drawn: alpha 0.4 beside 0", TRUE, drawn_much["true"], drawn["true"], 0.0, "difference>="),
        Effect("drawn: alpha 0.2 tries more", FOUND, drawn_some[tried], drawn[tried], 0.0, "difference>="),
        Effect("drawn: alpha 0.2 beside iterative DPO", TRUE, drawn_some["true"], dpo["true"], 0.0, "difference>="),
    ]
    for name, arm in (("alpha 0.2", some), ("drawn: alpha 0.2", drawn_some)):
        made.append(Effect(f"{name}: answers", "P(any value)", arm["wellformed"], None, 0.95, "ours>=", control=True))
    return made


def truthful(seed: int, workdir: Path, course: Course = Course()) -> list[Effect]:
    """Where what everybody says is true the term can only hurt."""
    arms = Arms(seed, workdir, course, truthful=True)
    none, some = (arms.selm(alpha) for alpha in (0.0, 0.2))
    arms.keep()
    return [
        Effect("alpha 0.2 costs reward", REWARD, some["reward"], none["reward"], 0.0, "difference<=", control=True),
        Effect("online DPO tells the truth", TRUE, none["true"], None, 0.8, "ours>=", control=True),
    ]


PARTS: dict[str, Part | None] = {
    "rumour": Part(rumour),
    "truthful": Part(truthful),
    "table": Part(table),
}
