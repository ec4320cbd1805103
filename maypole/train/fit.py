"""The one door to training: a model, rows, an objective and a config in; a checkpoint or adapter directory out.

Knows nothing about where rows come from or which paper an objective implements.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError, UnsupportedCapability, UserError
from maypole.core.progress import say, track
from maypole.core.seeds import derive
from maypole.models.forward import self_test
from maypole.models.language_model import LanguageModel
from maypole.models.plan import attention_plan, current_plan
from maypole.models.score_head import has_score_head
from maypole.train.allocator import memory_kept
from maypole.train.config import TrainConfig
from maypole.train.estimate import Estimate, choose_checkpointing, estimate
from maypole.train.objective import Objective, Rounds
from maypole.train.precision import Arithmetic, decide, has_bf16, masters
from maypole.train.ranks import ALONE, Ranks, join
from maypole.train.reference import Earlier, EarlierPolicy, ReferenceLogps, check_view, self_test_apart, settled
from maypole.train.result import load_result, save_result
from maypole.train.sharding import sharded
from maypole.train.source import Ended, Source, Work, nonempty, work
from maypole.train.trackers import TENSORBOARD, check_installed, tensorboard
from maypole.train.trainable import as_before_on_error, make_trainable
from maypole.train.trainer import PackedTrainer, finished_checkpoints

_MEMORY = ("tokens_per_batch", "gradient_checkpointing")
"""Settings that a continued run may be given anew: only where they are "auto" the plan decides."""


def fit(
    lm: LanguageModel,
    rows: Dataset | Rounds,
    objective: Objective,
    config: TrainConfig,
    *,
    out: str | Path | Artifact,
    seed: int = 0,
    reference: LanguageModel | Earlier | None = None,
    eval_rows: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Artifact:
    """Train `lm` in place and write what transformers or peft loads.

    The same call on the same `out` continues an interrupted run and ends with the weights of an uninterrupted one
    (equal threads and device); a finished one is loaded into `lm`. UserError says what in rows or config cannot work.

    Parameters
    ----------
    rows
        A dataset of the objective's row type, or Rounds that make one on the way.
    out
        A path: the artifact is opened, finished and returned. An open Artifact: only checkpoints and metrics.jsonl
        are kept in it, and finishing is its owner's.
    reference
        A frozen model for objectives that need its log-probs; a view of the same module (``lm.with_adapter(None)``)
        costs no memory. Or the policy itself as it was, "initial" before its first step or "previous" when the round
        began: no model either, whatever learns.
    """
    ranks = join()
    with ranks.together():
        return _fit(lm, rows, objective, config, out, seed, reference, eval_rows, callbacks, ranks)


def _fit(
    lm: LanguageModel,
    rows: Dataset | Rounds,
    objective: Objective,
    config: TrainConfig,
    out: str | Path | Artifact,
    seed: int,
    reference: LanguageModel | Earlier | None,
    eval_rows: Dataset | None,
    callbacks: Sequence[TrainerCallback],
    ranks: Ranks,
) -> Artifact:
    if isinstance(out, Artifact):
        if out.finished:
            load_result(lm, out, config)
        else:
            metrics = _train(lm, rows, objective, config, out, seed, reference, eval_rows, callbacks, ranks)
            out.manifest["metrics"] |= metrics
            lm.fingerprint = out.key
        return out
    inputs: dict[str, object] = {"model": lm, "rows": rows, "objective": objective}
    inputs |= {name: given for name, given in (("reference", reference), ("eval_rows", eval_rows)) if given is not None}

    def begin() -> Artifact:
        return Artifact.open(out, kind="train", config=config, inputs=inputs, seed=seed)

    with ranks.open(begin) as artifact, ranks.together():  # the artifact is to record what the first process says
        if artifact.finished:
            load_result(lm, artifact, config)
            return artifact
        metrics = _train(lm, rows, objective, config, artifact, seed, reference, eval_rows, callbacks, ranks)
        ranks.lead(lambda: save_result(lm, artifact, metrics))
        ranks.finish(artifact, metrics)
    lm.fingerprint = artifact.key
    return artifact


def _train(
    lm: LanguageModel,
    rows: Dataset | Rounds,
    objective: Objective,
    config: TrainConfig,
    artifact: Artifact,
    seed: int,
    reference: LanguageModel | Earlier | None,
    eval_rows: Dataset | None,
    callbacks: Sequence[TrainerCallback],
    ranks: Ranks,
) -> dict[str, Any]:
    if ("reference" in objective.needs) != (reference is not None):
        what = "needs a reference model" if reference is None else "has no use for a reference model"
        raise UserError(f"the objective {type(objective).__name__} {what}", "reference")
    if isinstance(reference, LanguageModel):
        check_view(reference, lm, config)
    elif reference is not None:
        _check_earlier(reference, lm, config, eval_rows)
    if ("scores" in objective.needs) != has_score_head(lm.model):
        what = "needs a score head" if "scores" in objective.needs else "needs a head that predicts tokens"
        raise UserError(f"the objective {type(objective).__name__} {what}", lm.name)
    _check_processes(lm, rows, reference, ranks)
    check_installed(config.report_to)
    device = ranks.device or lm.device
    source = Source(rows, objective, lm, config, seed=seed, folder=artifact.path, ranks=ranks)
    if config.round_learning_rates and len(config.round_learning_rates) != source.rounds:
        rates = config.round_learning_rates
        raise ConfigError("round_learning_rates", rates, f"one for each round, here {source.rounds}")
    before = replace(lm)
    with as_before_on_error(lm):
        make_trainable(lm, config, seed, artifact.path, artifact.out, ranks)
        self_test(lm.model)
        self_test_apart(reference, lm)
        if ranks.size > 1:
            ranks.same("rows", source.store.tokens)  # which also has them made by all, before the first plans alone
            sums = [torch.linalg.vector_norm(p.detach(), 1, dtype=torch.float64) for p in lm.model.parameters()]
            ranks.same("weights", f"{float(sum(sums)):.9g}")  # machines of several kinds add in different orders
        plan = ranks.lead(lambda: artifact.plan(lambda: decisions(lm, source, config, ranks)))
        if plan["precision"] == "bf16" and not has_bf16(device):
            raise UserError("the run was begun in bf16, which this machine lacks", str(artifact.path))
        plan |= {name: value for name in _MEMORY if (value := getattr(config, name)) != "auto"}
        source.tokens_per_batch = plan["tokens_per_batch"]
        with (
            memory_kept() if device.type == "cpu" else nullcontext(),
            masters(lm.model, plan["precision"], lm.dtype),
            _checkpointing(lm, plan["gradient_checkpointing"]),
            settled(reference, before, lm, config, source.rounds) as held_to,
        ):
            expected = ranks.lead(lambda: estimate(lm, source, plan))
            expected = replace(expected, seconds=expected.seconds / ranks.size)
            evaluation = _evaluation(eval_rows, objective, lm, source.max_length, plan["tokens_per_batch"], ranks)
            frozen = _reference(held_to, lm, source, config, plan["precision"], artifact, evaluation, ranks)
            with sharded(lm, ranks):
                trainer = PackedTrainer(
                    lm, objective, source, config, ranks=ranks, arithmetic=plan["precision"],
                    checkpoints=artifact.checkpoints.resolve(), metrics=artifact.metrics, seed=derive(seed, "trainer"),
                    reference=frozen, evaluation=evaluation,
                    callbacks=(*callbacks, *_tensorboard(config, artifact, ranks)),
                )  # fmt: skip
                metrics = _run(trainer, artifact, expected)
            if frozen is not None and source.rounds == 1 and ranks.first:
                first = source.step(0)
                frozen.publish([first] if evaluation is None else [first, evaluation])
            return metrics


def _reference(
    reference: LanguageModel | Earlier | None,
    lm: LanguageModel,
    source: Source,
    config: TrainConfig,
    arithmetic: Arithmetic,
    artifact: Artifact,
    evaluation: Work | None,
    ranks: Ranks,
) -> ReferenceLogps | None:
    if reference is None:
        return None
    if isinstance(reference, LanguageModel):
        kept = artifact.checkpoints if config.reference_logps == "cached" else None
        return ReferenceLogps(reference, arithmetic, kept)
    rounds = artifact.path / "rounds" if source.rounds > 1 else None
    return EarlierPolicy(
        lm, reference, arithmetic, artifact.checkpoints, rounds=rounds, ranks=ranks, evaluation=evaluation
    )


def _check_earlier(reference: Earlier, lm: LanguageModel, config: TrainConfig, eval_rows: Dataset | None) -> None:
    adapter = config.peft is not None or bool(lm.adapters)
    if config.reference_logps == "live" and (reference == "previous" or not adapter):
        what = "cached: an earlier policy stands in no model that could be asked"
        raise ConfigError("reference_logps", config.reference_logps, what)
    if reference == "previous" and eval_rows is not None:
        raise UserError("a loss on eval_rows has no one reference where that moves", "reference", '"initial"')


def _check_processes(
    lm: LanguageModel, rows: Dataset | Rounds, reference: LanguageModel | Earlier | None, ranks: Ranks
) -> None:
    """UserError says what several processes cannot do together, before they begin."""
    if ranks.device is not None and not ranks.sharded and lm.device.type != ranks.device.type:
        expected = f"--device {ranks.device.type}, or a launch with ACCELERATE_USE_CPU=true"
        raise UserError(f"the model is on {lm.device.type}, its processes on {ranks.device.type}", lm.name, expected)
    if not ranks.sharded:
        return
    if not isinstance(rows, Dataset):
        expected = "whole weights in every process: without --use_fsdp"
        raise UnsupportedCapability("rounds need whole weights to make their rows", "--use_fsdp", expected)
    shared = {id(p) for p in lm.model.parameters()}
    if reference is None:
        return
    if isinstance(reference, str) or any(id(p) in shared for p in reference.model.parameters()):
        expected = "a reference that is loaded apart, or a launch without --use_fsdp"
        raise UnsupportedCapability("a view of the model whose weights are split cannot be one", "reference", expected)


def decisions(lm: LanguageModel, source: Source, config: TrainConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """What "auto" means on this machine: written to plan.json once."""
    budget, device = config.tokens_per_batch, ranks.device or lm.device
    plan = {
        "precision": decide(config.precision, device),
        "tokens_per_batch": (4096 if device.type == "cpu" else 16384) if budget == "auto" else budget,
        "gradient_checkpointing": config.gradient_checkpointing,
        "steps": source.steps,
    }
    if config.gradient_checkpointing == "auto":
        # Who splits the weights is short of memory; how much of it a process will need is not known before they are.
        plan["gradient_checkpointing"] = ranks.sharded or choose_checkpointing(lm, source, plan)
    return plan


def _run(trainer: PackedTrainer, artifact: Artifact, expected: Estimate) -> dict[str, Any]:
    lm, steps, ranks = trainer.lm, trainer.source.steps, trainer.ranks
    done = ranks.lead(lambda: next(reversed(finished_checkpoints(trainer.checkpoints)), None))
    begin = int(done.name.split("-")[1]) if done else 0
    ranks.lead(lambda: artifact.metrics.cut(begin))
    lm.fingerprint = None  # until the run is whole, these weights are nobody's
    if done is None or begin < steps:
        if ranks.first:
            expected.announce()
        with _stop_politely(ranks) as stop, _shown(steps - begin, ranks) as step:
            trainer.add_callback(_Progress(stop, step, ranks))
            with suppress(Ended):
                trainer.train(resume_from_checkpoint=str(done) if done else None)
            if ranks.any(stop.is_set()):
                raise KeyboardInterrupt
    else:
        trainer.restore(done)
    steps = trainer.state.global_step
    lines = ranks.lead(artifact.metrics.read)
    metrics: dict[str, Any] = {"steps": steps, "tokens": trainer.tokens_seen}
    for line in lines:
        metrics |= {name: value for name, value in line.items() if name == "loss" or name.startswith("eval_")}
    lm.model.eval()
    store = trainer.source.step(steps - 1).store
    return metrics | {"rows": len(store), "dropped": store.dropped, "cut": store.cut, **expected.facts()}


def _shown(steps: int, ranks: Ranks) -> AbstractContextManager[Any]:
    return track("train", steps, "steps") if ranks.first else nullcontext(lambda n, **numbers: None)


class _Progress(TrainerCallback):
    def __init__(self, stop: threading.Event, step: Any, ranks: Ranks) -> None:
        self.stop, self.step, self.ranks = stop, step, ranks
        self.numbers: dict[str, Any] = {}

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        shown = {"loss": "loss", "tokens_per_second": "tok/s"}
        self.numbers = {shown[k]: float(v) for k, v in (logs or {}).items() if k in shown}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step(1, **self.numbers)
        if self.ranks.any(self.stop.is_set()):
            self.stop.set()
            control.should_save = control.should_training_stop = True


@contextmanager
def _stop_politely(ranks: Ranks) -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint at the end of the step; the second leaves at once.

    Several processes hear of one Ctrl-C twice, from the terminal and from their launcher, which has the last word.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and ranks.size == 1:
            raise KeyboardInterrupt
        if ranks.first and not stop.is_set():
            again = " (once more: at once, back to the last one)" if ranks.size == 1 else ""
            say(f"stopping when this step is done, with a checkpoint{again}")
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


def _tensorboard(config: TrainConfig, artifact: Artifact, ranks: Ranks) -> list[TrainerCallback]:
    wanted = TENSORBOARD in config.report_to and ranks.first
    return [tensorboard(artifact.path / TENSORBOARD)] if wanted else []


def _evaluation(
    rows: Dataset | None, objective: Objective, lm: LanguageModel, length: int, budget: int, ranks: Ranks
) -> Work | None:
    if rows is None:
        return None
    store = ranks.in_turn(lambda: nonempty(rows, objective, lm, length, "eval_rows"))
    return work(store, rows, np.arange(len(store)), objective, budget, None, lm, ranks)
