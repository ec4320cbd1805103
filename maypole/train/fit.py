"""The one door to training: a model, rows, an objective and a config in; a checkpoint or adapter directory out.

Knows nothing about where rows come from or which paper an objective implements.
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.progress import track
from maypole.core.seeds import derive
from maypole.models.adapters import merged, new_adapter
from maypole.models.attention import current_plan
from maypole.models.forward import self_test
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.estimate import Estimate, estimate
from maypole.train.objective import Objective, Rounds
from maypole.train.precision import decide, masters
from maypole.train.result import load_result, save_result
from maypole.train.source import Source, Work, nonempty, work
from maypole.train.step import ReferenceLogps
from maypole.train.trainer import PackedTrainer, finished_checkpoints, load_trainable

log = logging.getLogger(__name__)


def fit(
    lm: LanguageModel,
    rows: Dataset | Rounds,
    objective: Objective,
    config: TrainConfig,
    *,
    out: str | Path | Artifact,
    seed: int = 0,
    reference: LanguageModel | None = None,
    eval_rows: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Artifact:
    """Train `lm` in place and write what transformers or peft loads.

    Parameters
    ----------
    rows
        A dataset of the objective's row type, or Rounds that make one on the way.
    out
        A path: the artifact is opened, finished and returned. An open Artifact: only checkpoints and metrics.jsonl
        are kept in it, and finishing is its owner's.
    reference
        A frozen model for objectives that need its log-probs; a view of the same module (``lm.with_adapter(None)``)
        costs no memory.

    The same call on the same `out` continues an interrupted run and ends with the weights of an uninterrupted one
    (equal threads and device); a finished one is loaded into `lm`. UserError says what in rows or config cannot work.
    """
    if isinstance(out, Artifact):
        if out.finished:
            load_result(lm, out, config)
        else:
            _train(lm, rows, objective, config, out, seed, reference, eval_rows, callbacks)
        return out
    inputs: dict[str, object] = {"model": lm, "rows": rows, "objective": objective}
    inputs |= {name: given for name, given in (("reference", reference), ("eval_rows", eval_rows)) if given is not None}
    with Artifact.open(out, kind="train", config=config, inputs=inputs, seed=seed) as artifact:
        if artifact.finished:
            load_result(lm, artifact, config)
            return artifact
        metrics = _train(lm, rows, objective, config, artifact, seed, reference, eval_rows, callbacks)
        save_result(lm, artifact, metrics)
        artifact.finish(metrics)
    lm.fingerprint = artifact.key
    return artifact


def _train(
    lm: LanguageModel,
    rows: Dataset | Rounds,
    objective: Objective,
    config: TrainConfig,
    artifact: Artifact,
    seed: int,
    reference: LanguageModel | None,
    eval_rows: Dataset | None,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    if ("reference" in objective.needs) != (reference is not None):
        what = "needs a reference model" if reference is None else "has no use for a reference model"
        raise UserError(f"the objective {type(objective).__name__} {what}", "reference")
    make_trainable(lm, config, seed, artifact.path)
    self_test(lm.model)
    lm.fingerprint = None  # until the run is whole, these weights are nobody's
    length = min(config.max_length or lm.max_length, lm.max_length)
    source = Source(rows, objective, lm, config, max_length=length, seed=seed, folder=artifact.path)
    plan = artifact.plan(lambda: decisions(lm, source, config))
    if decide(plan["precision"], lm.device) != plan["precision"]:
        raise UserError(f"the run was begun in {plan['precision']}, which this machine lacks", str(artifact.path))
    source.tokens_per_batch = plan["tokens_per_batch"]
    with masters(lm.model, plan["precision"]), _checkpointing(lm, plan["gradient_checkpointing"]):
        expected = estimate(lm, source, plan, torch.get_num_threads())
        expected.announce()
        frozen = None
        if reference is not None:
            kept = artifact.checkpoints if config.reference_logps == "cached" else None
            frozen = ReferenceLogps(reference, plan["precision"], kept)
        trainer = PackedTrainer(
            lm, objective, source, config, arithmetic=plan["precision"], checkpoints=artifact.checkpoints.resolve(),
            metrics=artifact.metrics, seed=derive(seed, "trainer"), reference=frozen,
            evaluation=_evaluation(eval_rows, objective, lm, length, plan["tokens_per_batch"]),
            callbacks=tuple(callbacks),
        )  # fmt: skip
        return _run(trainer, artifact, expected)


def decisions(lm: LanguageModel, source: Source, config: TrainConfig) -> dict[str, Any]:
    """What "auto" means on this machine: written to plan.json once."""
    from maypole.train.estimate import choose_checkpointing

    budget = config.tokens_per_batch
    plan = {
        "precision": decide(config.precision, lm.device),
        "tokens_per_batch": (4096 if lm.device.type == "cpu" else 16384) if budget == "auto" else budget,
        "gradient_checkpointing": config.gradient_checkpointing,
        "steps": source.steps,
    }
    if config.gradient_checkpointing == "auto":
        plan["gradient_checkpointing"] = choose_checkpointing(lm, source, plan)
    return plan


def make_trainable(lm: LanguageModel, config: TrainConfig, seed: int, folder: Path) -> None:
    """What is to be learnt has gradients, the rest has none: a new adapter, the adapter at hand, or all weights."""
    if config.peft is not None:
        if lm.adapters:
            from maypole.models.saving import save

            base = merged(lm)
            save(base, folder / "base")
            lm.model, lm.adapter, lm.name = base.model, base.adapter, str((folder / "base").resolve())
        made = new_adapter(lm, config.peft, seed=seed)
        lm.model, lm.adapter = made.model, made.adapter
    elif lm.adapters:
        active = lm.model.base_model.active_adapters
        for name, parameter in lm.model.named_parameters():
            parameter.requires_grad_(any(f".{a}" in name for a in active))
    else:
        lm.model.requires_grad_(True)


def _run(trainer: PackedTrainer, artifact: Artifact, expected: Estimate) -> dict[str, Any]:
    done = finished_checkpoints(trainer.checkpoints)
    resume = str(done[-1]) if done else None
    begin = int(done[-1].name.split("-")[1]) if done else 0
    artifact.metrics.cut(begin)
    if begin >= trainer.source.steps:
        load_trainable(trainer.lm.model, done[-1])
    else:
        with _stop_politely() as stop, track("train", trainer.source.steps - begin, "steps") as step:
            trainer.add_callback(_Progress(trainer, stop, step))
            trainer.train(resume_from_checkpoint=resume)
            trainer._save_checkpoint(trainer.lm.model, None)
            if stop.is_set():
                raise KeyboardInterrupt
    trainer.lm.model.eval()
    lines = [line for line in artifact.metrics.read() if "loss" in line]
    metrics: dict[str, Any] = {
        "steps": trainer.source.steps,
        "tokens": trainer.tokens_seen or (lines[-1]["tokens"] if lines else 0),
    }
    if lines:
        metrics["loss"] = lines[-1]["loss"]
    if trainer.evaluation:
        metrics["eval_loss"] = trainer.evaluate()["eval_loss"]
    return metrics | {"rows": len(trainer.source.store), "dropped": trainer.source.store.dropped, **expected.facts()}


class _Progress(TrainerCallback):
    def __init__(self, trainer: PackedTrainer, stop: threading.Event, step: Any) -> None:
        self.trainer, self.stop, self.step = trainer, stop, step
        self.numbers: dict[str, Any] = {}

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        shown = {"loss": "loss", "tokens_per_second": "tok/s"}
        self.numbers = {shown[k]: float(v) for k, v in (logs or {}).items() if k in shown}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step(1, **self.numbers)
        if self.stop.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def _stop_politely() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint at the end of the step; the second leaves at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _checkpointing(lm: LanguageModel, on: bool) -> Iterator[None]:
    """Activations recomputed in the backward pass, under the plan that was in force in the forward pass."""
    if not on:
        yield
        return
    from contextlib import nullcontext

    from maypole.models.attention import attention_plan

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), attention_plan(current_plan())

    model = lm.transformer
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
    )
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _evaluation(rows: Dataset | None, objective: Objective, lm: LanguageModel, length: int, budget: int) -> Work | None:
    if rows is None:
        return None
    store = nonempty(rows, objective, lm, length, "eval_rows")
    return work(store, rows, np.arange(len(store)), objective, budget, None)
