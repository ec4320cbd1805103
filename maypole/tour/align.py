"""Stage 3: online rounds in which the tuned model's own answers are judged, the best and the worst of each prompt being
what it learns from. Knows nothing about reports.

Descriptions of the village's people need a form first, which a short supervised run shows; continuations of the user's
own texts need none. What the model was before the rounds is what it is compared with after them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.method import Method
from maypole.align.online import online
from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.core.statistics import Interval, bootstrap
from maypole.evaluate.kl import divergence
from maypole.evaluate.win_rate import outcomes
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load
from maypole.tour import judges
from maypole.tour.adapt import length_of, recipe, saved_of, trained, training_config
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus
from maypole.tour.plan import EXAMPLES_PER_STEP, AlignPlan
from maypole.tour.preferences import Preferences, continuations, described, descriptions
from maypole.tour.rows import form_rows
from maypole.train.result import save_result

FORM, ROUNDS = "form", "rounds"
"""Names of the two runs inside the stage's artifact."""
FILE, JUDGES = "aligned.json", "judges.py"
DRAWN, MEASURED = "drawn.jsonl", "measured.jsonl"
"""Prompt rows of the rounds, and of what is measured."""
FORM_RATE, ROUNDS_RATE, KNOWN_RATE = 1 / 2, 1 / 6, 1 / 12
"""Of the rate at which instructions are learnt: of the form, of the rounds, and of rounds on people whom the model has
read of. At twice the last these win a little more and it forgets the pages about them; at half the first it learns
less of the form, and the rounds make it forget more."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The model after a number of rounds, on the measured prompts: `answers` in groups of equal size, each with
    its tokens, its reward and `counts` of what is in it; of each prompt how often they beat those before the first
    round, and how far the model is from itself as it was then, in nats an answer."""

    answers: Sequence[str]
    tokens: Sequence[int]
    rewards: Sequence[float]
    won: Sequence[float]
    kl: Sequence[float]
    counts: Mapping[str, Sequence[int]]

    @property
    def samples(self) -> int:
        """Answers to a prompt."""
        return len(self.answers) // len(self.won)

    @property
    def win_rate(self) -> Interval:
        return bootstrap(self.won)

    @property
    def moved(self) -> Interval:
        return bootstrap(self.kl)


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it: a policy for each number of rounds, from none on. `columns` are those of the prompts."""

    columns: Mapping[str, Sequence[str]]
    policies: Sequence[Policy]

    @classmethod
    def of(cls, stage: Path) -> "Found":
        """That of a finished stage."""
        document = json.loads((stage / FILE).read_bytes())
        return cls(document["columns"], [Policy(**policy) for policy in document["policies"]])


def align(base: Base, corpus: Corpus, plan: AlignPlan, adapted: Artifact, artifact: Artifact, *, seed: int) -> None:
    """Make `artifact`: its root becomes the aligned checkpoint or adapter, its parts are the runs that led there.

    Any of them goes on where it was stopped.
    """
    lm = load(adapted.path)
    if plan.form_rows:
        _form(artifact, base, lm, corpus, plan, seed)
        about = descriptions(lm, plan, seed, known=base.own)
    else:
        about = continuations(lm, corpus, plan, seed)
    _write(artifact, about)
    rounds = _rounds(artifact, base, lm, about, plan, seed)
    columns: Any = about.measured.to_dict()
    found = Found(columns, _policies(about, rounds, plan))
    write_atomic(artifact.path / FILE, json.dumps(asdict(found)))
    won, moved = found.policies[-1].win_rate, found.policies[-1].moved
    metrics = {
        "steps": plan.steps, "tokens": rounds.manifest["metrics"]["tokens"], "win_rate": won.mean,
        "win_rate_ci95": [won.low, won.high], "kl": moved.mean,
    }  # fmt: skip
    save_result(lm, artifact, metrics)
    artifact.finish(metrics)


def _form(artifact: Artifact, base: Base, lm: LanguageModel, corpus: Corpus, plan: AlignPlan, seed: int) -> None:
    """The supervised run that shows how an answer looks."""
    shown = described(plan.form_rows, derive(seed, "shown"))
    length = length_of(lm)
    rows, objective = form_rows(lm, corpus.train, shown, replay=base.own, length=length, seed=seed)
    rate = _rate(lm, base, plan, FORM_RATE)
    config = training_config(rate, plan.form_steps, plan.examples_per_step, length, None)
    trained(artifact, FORM, lm, rows, objective, config, seed)


def _rounds(
    artifact: Artifact, base: Base, lm: LanguageModel, about: Preferences, plan: AlignPlan, seed: int
) -> Artifact:
    rate = _rate(lm, base, plan, KNOWN_RATE if plan.form_rows and base.own else ROUNDS_RATE)
    train = training_config(rate, plan.rounds * plan.round_steps, plan.examples_per_step, length_of(lm), None)
    config = OnlineConfig(
        rounds=plan.rounds, prompts_per_round=len(about.drawn), eval_max_tokens=about.method.sampling.max_tokens
    )
    measured, method = _repeated(about.measured, plan.measured_samples), cast(Method, about.method)
    inputs: dict[str, object] = {
        "model": lm, "prompts": about.drawn, "judge": about.judge, "method": method, "eval_prompts": measured,
    }  # fmt: skip
    part = artifact.child(ROUNDS, kind="online", config={"online": config, "train": train}, inputs=inputs, seed=seed)
    with part:
        online(
            lm, about.drawn, about.judge, method, config, train, out=part, seed=derive(seed, ROUNDS),
            eval_prompts=measured,
        )  # fmt: skip
        if not part.finished:
            save_result(lm, part, part.manifest["metrics"])
            part.finish()
    return part


def _rate(lm: LanguageModel, base: Base, plan: AlignPlan, share: float) -> float:
    return share * recipe(lm, base.own).instruction_rate * (plan.examples_per_step / EXAMPLES_PER_STEP) ** 0.5


def _write(artifact: Artifact, about: Preferences) -> None:
    """What repeats the rounds by hand: the judges and the prompts."""
    write_atomic(artifact.path / JUDGES, Path(judges.__file__).read_text())
    for name, rows in ((DRAWN, about.drawn), (MEASURED, about.measured)):
        lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
        write_atomic(artifact.path / name, "".join(lines))


def _policies(about: Preferences, rounds: Artifact, plan: AlignPlan) -> list[Policy]:
    """What the answers to the measured prompts were worth after each number of rounds, from none on."""
    measured = _repeated(about.measured, plan.measured_samples)
    prompts, columns = measured["prompt"][:], about.columns(measured)
    found: list[Policy] = []
    for number in range(plan.rounds + 1):
        rows = pq.read_table(rounds.path / "evaluations" / f"{number:03}.parquet").to_pylist()
        said, ids = [row["answer"] for row in rows], [row["ids"] for row in rows]
        moved = divergence(
            [row["logprobs"] for row in rows], [row["initial_logprobs"] for row in rows], samples=plan.measured_samples
        )
        first = found[0].answers if found else said
        found.append(
            Policy(
                answers=said, tokens=list(map(len, ids)), rewards=about.reward(prompts, said, **columns),
                won=_won(about, plan.measured_samples, said, first), kl=moved.items.tolist(),
                counts=about.counts(prompts, said) if about.counts else {},
            )
        )  # fmt: skip
    return found


def _won(about: Preferences, n: int, answers: Sequence[str], rivals: Sequence[str]) -> list[float]:
    """Of each measured prompt how often one of its `n` answers beats one of the rivals', all against all; ties ½."""
    pairs = [(first + i, first + j) for first in range(0, len(answers), n) for i in range(n) for j in range(n)]
    asked = about.measured.select([i // n for i, _ in pairs])
    items = outcomes(
        [answers[i] for i, _ in pairs], [rivals[j] for _, j in pairs], about.judge, asked["prompt"][:],
        about.columns(asked),
    )  # fmt: skip
    return items.reshape(-1, n * n).mean(axis=1).tolist()


def _repeated(rows: Dataset, times: int) -> Dataset:
    """Every row as often as it is answered."""
    made = rows.select([i // times for i in range(len(rows) * times)])
    made._fingerprint = digest("tour measured", str(rows._fingerprint), str(times))
    return made


def saved(stage: Path) -> str:
    """How far an unfinished stage is by its checkpoints; "" before the first."""
    return saved_of(stage, (ROUNDS, FORM))
