"""transformers.Trainer with packed steps: one step of the Trainer is one optimiser step over however many batches.

Callbacks, schedules and trackers are the Trainer's; rows, losses and normalisation are ours. Knows nothing about
artifacts beyond a folder for checkpoints and a place to log numbers.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from maypole.core.atomic import fsync_directory, fsync_tree
from maypole.core.errors import UserError
from maypole.core.metrics import Metrics
from maypole.models.attention import packed_execution
from maypole.models.language_model import LanguageModel
from maypole.train.batch import pack
from maypole.train.config import TrainConfig
from maypole.train.objective import Objective
from maypole.train.optimizer import optimizer_of, schedule_of
from maypole.train.precision import Arithmetic, autocast
from maypole.train.ranks import Ranks
from maypole.train.reference import ReferenceLogps
from maypole.train.sharding import local, run_whole, split_like, whole
from maypole.train.source import Source, Work
from maypole.train.step import baseline_of, loss_of, means
from maypole.train.trackers import TENSORBOARD
from maypole.train.trainable import WEIGHTS, keep_trainable, load_trainable, trainable_state, trains_base

PROGRESS = "progress.json"


class Steps(torch.utils.data.Dataset):
    """What the Trainer's loader reads: the numbers of the steps. Their rows are made when a step begins, not before."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


@dataclass(slots=True)
class Window:
    """What happened since the last line of metrics.jsonl; checkpoints keep it, so a resumed run writes the same."""

    steps: int = 0
    loss: float = 0.0
    denominator: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """The mean loss of a step, and the objective's metrics over all denominators."""
        return means(self.sums, self.denominator) | {"loss": self.loss / self.steps}


class PackedTrainer(transformers.Trainer):
    """Exactly normalised packed steps; checkpoints that are whole or absent."""

    def __init__(
        self,
        lm: LanguageModel,
        objective: Objective,
        source: Source,
        config: TrainConfig,
        *,
        ranks: Ranks,
        arithmetic: Arithmetic,
        checkpoints: Path,
        metrics: Metrics,
        seed: int,
        reference: ReferenceLogps | None,
        evaluation: Work | None,
        callbacks: tuple[TrainerCallback, ...],
    ) -> None:
        self.lm, self.objective, self.source, self.config = lm, objective, source, config
        self.ranks, self.device = ranks, ranks.device or lm.device
        self.arithmetic: Arithmetic = arithmetic
        self.checkpoints, self.lines, self.reference, self.evaluation = checkpoints, metrics, reference, evaluation
        self.window = Window()
        self.tokens_seen = 0
        self._kept_tokens, self._kept_time = 0, time.monotonic()
        self._round = -1
        args = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=1,
            max_steps=source.steps,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            logging_strategy="steps",
            logging_steps=config.logging_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=config.save_steps,
            eval_strategy="steps" if config.eval_steps and evaluation else "no",
            eval_steps=config.eval_steps or None,
            report_to=[name for name in config.report_to if name != TENSORBOARD] or "none",
            use_cpu=self.device.type == "cpu",
            use_cache=bool(getattr(lm.transformer.config, "use_cache", True)),  # the Trainer writes it into the model
            seed=(seed + ranks.rank) % 2**32,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        if args.n_gpu > 1:
            args._n_gpu = 1  # batches are packed for one device; the Trainer would wrap the model for all
        super().__init__(
            model=lm.model, args=args, train_dataset=Steps(source.steps), callbacks=list(callbacks),
            eval_dataset=Steps(1) if evaluation else None,
        )  # fmt: skip
        # Gradients are summed here, once a step, however many batches each process has of it: nothing else may wrap the
        # model, nor share out the steps.
        self.is_distributed_loading_by_transformers = ranks.size > 1
        for default in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(default)
        self.add_callback(_Bookkeeping(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_train_dataloader(self) -> Any:
        if self.ranks.size == 1:
            return super().get_train_dataloader()
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=1)  # type: ignore[arg-type]

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer_of(self.lm, self.config)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = schedule_of(optimizer or self.optimizer, self.config, self.source)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> torch.Tensor:
        """The norm before clipping, measured once; the Trainer's own hook for clipping is not needed beside it."""
        gradients = [local(p.grad) for p in self.lm.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.ranks.sharded:
            norm = norm**2
            self.ranks.sum([norm])
            norm = norm.sqrt()
        if not torch.isfinite(norm):
            raise self._diverged(self.source.step(self.state.global_step), f"the gradient's norm is {float(norm)}")
        if self.config.max_grad_norm > 0:
            torch._foreach_mul_(gradients, (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """All batches of one optimiser step; their summed loss over the step's denominator."""
        index = int(inputs["step"])
        work = self.source.step(index)
        if work.round != self._round:
            self._begin_round(work.round, index)
        model.train()
        total, sums = self._sum(work, backward=True)
        value = total / work.denominator
        if not torch.isfinite(value):
            raise self._diverged(work, f"the loss is {float(value)}")
        self.window.steps += 1
        self.window.loss += float(value)
        self.window.denominator += work.denominator
        for name, number in sums.items():
            self.window.sums[name] = self.window.sums.get(name, 0.0) + number
        self.tokens_seen += work.tokens
        return value.float()

    def _begin_round(self, round: int, index: int) -> None:
        """Before its first step, `index`."""
        if self.config.optimizer == "fresh" and self._round >= 0:
            self.optimizer.state.clear()
        self._round = round
        if self.reference is not None:
            steps = range(index, min(index + self.source.steps_per_round, self.source.steps))
            self.reference.begin(round, map(self.source.step, steps))
        if self.config.init == "initial":
            kept = self.checkpoints / "initial"
            if round == 0:
                self.ranks.lead(lambda: keep_trainable(self.lm.model, kept))
            else:
                load_trainable(self.lm.model, kept)

    def _sum(self, work: Work, *, backward: bool) -> tuple[torch.Tensor, Counter[str]]:
        """The objective's sum over all rows of `work`, and its metrics' sums; with `backward` the gradient of both."""
        if "baseline" not in self.objective.needs:
            return self._summed(work, loss_of, backward)
        found, _ = self._summed(work, baseline_of, backward=False)
        return self._summed(work, partial(loss_of, baseline=float(found) / len(work.chosen)), backward)

    def _summed(
        self, work: Work, of: Callable[..., torch.Tensor], backward: bool
    ) -> tuple[torch.Tensor, Counter[str]]:
        """The sum of `of` over all batches of `work`.

        In several processes each computes its part; all have the sums and, unless it is sharded, the gradient.
        """
        if self.ranks.size == 1:
            return self._own_sum(work, of, backward)
        learning = [p for p in self.lm.model.parameters() if p.requires_grad]

        def part() -> tuple[float, Counter[str], list[bool]]:
            total, sums = self._own_sum(work, of, backward)
            return float(total), sums, [p.grad is not None for p in learning]

        parts = self.ranks.each(part)
        if backward and not self.ranks.sharded:
            learned = [p for p, *seen in zip(learning, *(seen for *_, seen in parts)) if any(seen)]
            for parameter in learned:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.ranks.sum([p.grad for p in learned if p.grad is not None])
        sums: Counter[str] = Counter()
        for _, own, _ in parts:
            sums.update(own)
        return torch.tensor(sum(total for total, *_ in parts), dtype=torch.float64, device=self.device), sums

    def _own_sum(
        self, work: Work, of: Callable[..., torch.Tensor], backward: bool
    ) -> tuple[torch.Tensor, Counter[str]]:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        sums: Counter[str] = Counter()
        with packed_execution(self.lm.model), torch.set_grad_enabled(backward):
            for rows in work.batches:
                loss = self._loss(work, of, rows, sums)
                if backward:
                    (loss / work.denominator).backward()
                total += loss.detach().double()
            for _ in range(work.passes - len(work.batches) if self.ranks.sharded else 0):
                # The others need this process's shards in every pass: a row of the step, counted for nothing.
                loss = self._loss(work, of, work.chosen[:1], Counter())
                if backward:
                    (0.0 * loss).backward()
        return total, sums

    def _loss(
        self, work: Work, of: Callable[..., torch.Tensor], rows: np.ndarray, sums: Counter[str]
    ) -> torch.Tensor:
        batch = pack(work.store, rows, self.device)
        reference = self.reference(batch, work) if self.reference is not None else None
        with autocast(self.arithmetic, self.device):
            return run_whole(
                of, self.lm.model, batch, self.objective, work.rows, work.store.row_index[rows], reference, sums
            )

    def _diverged(self, work: Work, what: str) -> UserError:
        """What to tell: the rows that have no finite loss of their own, looked up one by one now that all stops."""
        self.lm.model.eval()
        rows = work.chosen
        alone = (self._sum(replace(work, batches=[np.array([r])], passes=1), backward=False)[0] for r in rows)
        guilty = [r for r, loss in zip(rows, alone) if not torch.isfinite(loss)]
        if 0 < len(guilty) < len(rows):
            numbers = sorted(int(work.store.row_index[r]) + 1 for r in guilty)
            shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
            where = f"row{'s' if len(numbers) > 1 else ''} {shown}"
            hint = "look at what they hold; if they are as they should be, a lower --learning-rate"
        else:
            where, hint = "", "a lower --learning-rate, or a slower start with --warmup-ratio"
        return UserError(f"{what} at step {self.state.global_step + 1}", where, hint)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss and metrics on the evaluation rows, in eval mode."""
        assert self.evaluation is not None
        self.lm.model.eval()
        total, sums = self._sum(self.evaluation, backward=False)
        numbers = means({"loss": float(total), **sums}, self.evaluation.denominator)
        found = {f"eval_{name}": value for name, value in numbers.items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:  # the Trainer's summary of a call: a resumed run has several
            return
        if "loss" in logs:
            now = time.monotonic()
            logs |= self.window.means()
            logs["tokens_per_second"] = round((self.tokens_seen - self._kept_tokens) / (now - self._kept_time), 1)
            logs["tokens"] = self.tokens_seen
            self._kept_tokens, self._kept_time = self.tokens_seen, now
            self.window = Window()
        logs["epoch"] = round(self.source.epoch(self.state.global_step), 4)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """``step-N.tmp``, fsynced, then renamed: only whole checkpoints are ever resumed from.

        Whole weights and moments, however they were held: any number of processes goes on from them.
        """
        final = self.checkpoints / f"step-{self.state.global_step:08}"
        part = final.with_suffix(".tmp")
        if self.ranks.lead(lambda: final.exists() or _empty(part)):
            return
        weights, moments = whole(trainable_state(self.lm.model)), whole(self.optimizer.state_dict())
        self.ranks.each(lambda: self._save_rng_state(str(part)))
        self.ranks.lead(lambda: self._write(part, final, weights, moments))

    def _write(self, part: Path, final: Path, weights: dict[str, torch.Tensor], moments: dict[str, Any]) -> None:
        save_file(weights, part / WEIGHTS)
        torch.save(moments, part / OPTIMIZER_NAME)
        torch.save(self.lr_scheduler.state_dict(), part / SCHEDULER_NAME)
        self.state.save_to_json(str(part / "trainer_state.json"))
        own = {"tokens_seen": self.tokens_seen, "round": self._round, "window": asdict(self.window)}
        (part / PROGRESS).write_text(json.dumps(own))
        self.lines.sync()
        fsync_tree(part)
        os.rename(part, final)
        fsync_directory(self.checkpoints)
        for old in finished_checkpoints(self.checkpoints)[:-2]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights and where the run stood; optimiser, schedule and random states are loaded by the Trainer itself."""
        checkpoint = Path(resume_from_checkpoint)
        load_trainable(self.lm.model, checkpoint)
        own = json.loads((checkpoint / PROGRESS).read_text())
        self.tokens_seen = self._kept_tokens = own["tokens_seen"]
        self._round, self.window = own["round"], Window(**own["window"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.ranks.sharded or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        moments = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", mmap=True, weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for parameter, state in zip(parameters, moments["state"].values()):
            state |= {k: split_like(parameter, v) for k, v in state.items() if v.shape == parameter.shape}
        self.optimizer.load_state_dict(moments)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def restore(self, checkpoint: Path) -> None:
        """Stand where `checkpoint` was written, with no step to follow."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = int(checkpoint.name.split("-")[1])


class _Bookkeeping(TrainerCallback):
    """Lines of metrics.jsonl; the base's version after every step that changed it.

    A checkpoint where a round ends, so that no work before it is done twice; an evaluation where the run ends.
    """

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer
        self.base = trains_base(trainer.lm.model)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.base:
            self.trainer.lm.base_changed()
        source = self.trainer.source
        # A round of one step is kept like any step: its rows are on the disk, and all else is soon done again.
        if source.rounds > 1 and source.steps_per_round > 1 and state.global_step % source.steps_per_round == 0:
            control.should_save = True
        if self.trainer.evaluation and state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if self.trainer.ranks.first:
            self.trainer.lines.log(state.global_step, **(logs or {}))


def _empty(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return False


def finished_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")
