"""Stage 2: the base learns the corpus, then instructions, and keeps what it knew. Knows nothing about reports.

All weights with replay of the base's own pretraining mix where that is known (the base that ships), else a LoRA:
nobody has the data a user's model was trained on, so what it forgot is measured beside what it learnt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.core.artifact import Artifact
from maypole.core.seeds import derive
from maypole.models.language_model import LanguageModel
from maypole.models.peft_options import PeftOptions
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus
from maypole.tour.plan import CURVE_POINTS, EXAMPLES_PER_STEP, AdaptPlan
from maypole.tour.rows import corpus_rows, held_out_rows, instruction_rows
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Objective
from maypole.train.result import save_result

CORPUS, INSTRUCTIONS = "corpus", "instructions"
"""Names of the two runs inside the stage's artifact."""
MAX_LENGTH = 256
WIDE = 512
"""Hidden size from which a model wants the smaller learning rates."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tour trains: all weights of its own base, or a LoRA on any other model."""

    corpus_rate: float
    instruction_rate: float
    peft: PeftOptions | None


def recipe(lm: LanguageModel, own: bool) -> Recipe:
    """Rates for steps of EXAMPLES_PER_STEP rows, as measured on the base that ships; for other models by their width.

    Smaller steps take smaller rates, by the square root."""
    if own:
        return Recipe(7e-4, 3e-4, None)
    wide = int(lm.transformer.config.get_text_config().hidden_size) >= WIDE
    return Recipe(2e-4 if wide else 2e-3, 1e-4 if wide else 1e-3, PeftOptions(r=16, lora_alpha=32))


def length_of(lm: LanguageModel) -> int:
    """Longest training row of a tour."""
    return min(MAX_LENGTH, lm.max_length)


def adapt(base: Base, corpus: Corpus, plan: AdaptPlan, artifact: Artifact, *, seed: int) -> None:
    """Make `artifact`: its root becomes the trained checkpoint or adapter, its two parts are the runs that led there.

    Either run goes on where it was stopped. Without instructions in the plan, only the corpus is learnt and nothing is
    replayed.
    """
    lm = base.load()
    how, length = recipe(lm, base.own), length_of(lm)
    replay = base.own and plan.instruction_rows > 0
    rows, objective = corpus_rows(lm, corpus.train, plan.documents, replay=replay, length=length, seed=seed)
    some = corpus.held_out.select(range(min(plan.curve_documents, len(corpus.held_out))))
    watched = held_out_rows(lm, some, replay=replay, length=length)
    smaller = (plan.examples_per_step / EXAMPLES_PER_STEP) ** 0.5
    config = training_config(smaller * how.corpus_rate, plan.corpus_steps, plan.examples_per_step, length, how.peft)
    first = trained(artifact, CORPUS, lm, rows, objective, config, seed, watched)
    metrics: dict[str, Any] = {f"{CORPUS}_{name}": first.manifest["metrics"][name] for name in ("steps", "tokens")}
    if plan.instruction_rows:
        rows, objective = instruction_rows(
            lm, corpus.train, plan.instruction_rows, replay=replay, length=length, seed=seed
        )
        rate = smaller * how.instruction_rate
        config = training_config(rate, plan.instruction_steps, plan.examples_per_step, length, None)
        second = trained(artifact, INSTRUCTIONS, lm, rows, objective, config, seed)
        metrics |= {f"{INSTRUCTIONS}_{name}": second.manifest["metrics"][name] for name in ("steps", "tokens")}
    save_result(lm, artifact, metrics)
    artifact.finish(metrics)


def training_config(rate: float, steps: int, examples: int, length: int, peft: PeftOptions | None) -> TrainConfig:
    """Short warm-up from 0, constant, then down to 0 for half of the steps: `steps` decide, not epochs."""
    between = math.ceil(steps / CURVE_POINTS)
    every = max(1, between // 4)
    return TrainConfig(
        learning_rate=rate, examples_per_step=examples, max_length=length, max_steps=steps, peft=peft,
        lr_scheduler_type="warmup_stable_decay", warmup_ratio=max(0.05, min(1 / steps, 0.5)),
        lr_scheduler_kwargs={"num_decay_steps": max(1, steps // 2), "decay_type": "linear"},
        logging_steps=every, eval_steps=every * math.ceil(between / every), save_steps=max(5, steps // 10),
    )  # fmt: skip


def trained(
    artifact: Artifact,
    name: str,
    lm: LanguageModel,
    rows: Dataset,
    objective: Objective,
    config: TrainConfig,
    seed: int,
    watched: Dataset | None = None,
) -> Artifact:
    """One training run as a part of the stage, whole before the next begins."""
    inputs: dict[str, object] = {"model": lm, "rows": rows, "objective": objective}
    part = artifact.child(name, kind="train", config=config, inputs=inputs, seed=seed)
    with part:
        fit(
            lm, rows, objective, config, out=part, seed=derive(seed, name), eval_rows=watched,
            callbacks=() if watched is None else (_MeasuredFirst(),),
        )  # fmt: skip
        if not part.finished:
            save_result(lm, part, part.manifest["metrics"])
            part.finish()
    return part


class _MeasuredFirst(TrainerCallback):
    """Asks for the held-out loss after the first step too. The warm-up begins at 0: that step changes no weight, and
    what is measured is the base."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_evaluate = True


def curve(stage: Path) -> list[tuple[int, float]]:
    """(training tokens, held-out loss) along the corpus run of a finished stage; the first is the base's."""
    run = Artifact.load(stage / CORPUS)
    points: list[tuple[int, float]] = []
    tokens = 0
    for line in run.metrics.read():
        tokens = line.get("tokens", tokens)
        if line["step"] == run.manifest["metrics"]["steps"]:
            tokens = run.manifest["metrics"]["tokens"]
        if "eval_loss" in line:
            points.append((tokens if points else 0, line["eval_loss"]))
    return points


def saved(stage: Path) -> str:
    """How far an unfinished stage is by its checkpoints: "corpus, step 310"; "" before the first."""
    return saved_of(stage, (INSTRUCTIONS, CORPUS))


def saved_of(stage: Path, runs: Sequence[str]) -> str:
    """The same of any stage that is made of `runs`, the last one first."""
    for name in runs:
        part = stage / f"{name}.part"
        steps = sorted(p.name for p in part.glob("checkpoints/step-*") if p.suffix != ".tmp")
        if steps:
            return f"{name}, step {int(steps[-1].removeprefix('step-')):,}"
        if (stage / name).is_dir():
            return f"{name}, all steps"
    return ""
