"""transformers.Trainer with packed steps: one step of the Trainer is one optimiser step over however many batches.

Callbacks, schedules and trackers are the Trainer's; rows, losses and normalisation are ours. Knows nothing about
artifacts beyond a folder for checkpoints and a place to log numbers.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from maypole.core.atomic import fsync_directory, fsync_tree
from maypole.core.errors import UserError
from maypole.core.metrics import Metrics
from maypole.models.attention import packed_execution
from maypole.models.language_model import LanguageModel
from maypole.train.batch import pack
from maypole.train.config import TrainConfig
from maypole.train.objective import Objective
from maypole.train.precision import Arithmetic, autocast
from maypole.train.source import Source, Work
from maypole.train.step import ReferenceLogps, loss_of

WEIGHTS = "trainable.safetensors"


class Steps(torch.utils.data.Dataset):
    """What the Trainer's loader reads: the numbers of the steps. Their rows are made when a step begins, not before."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


class PackedTrainer(transformers.Trainer):
    """Exactly normalised packed steps; checkpoints that are whole or absent."""

    def __init__(
        self,
        lm: LanguageModel,
        objective: Objective,
        source: Source,
        config: TrainConfig,
        *,
        arithmetic: Arithmetic,
        checkpoints: Path,
        metrics: Metrics,
        seed: int,
        reference: ReferenceLogps | None,
        evaluation: Work | None,
        callbacks: tuple[TrainerCallback, ...],
    ) -> None:
        self.lm, self.objective, self.source, self.config = lm, objective, source, config
        self.arithmetic: Arithmetic = arithmetic
        self.checkpoints, self.lines, self.reference, self.evaluation = checkpoints, metrics, reference, evaluation
        self.sums: Counter[str] = Counter()
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
            report_to=list(config.report_to) or "none",
            use_cpu=lm.device.type == "cpu",
            seed=seed % 2**32,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        super().__init__(
            model=lm.model, args=args, train_dataset=Steps(source.steps), callbacks=list(callbacks),
            eval_dataset=Steps(1) if evaluation else None,
        )  # fmt: skip
        for default in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(default)
        self.add_callback(_Bookkeeping(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            c = self.config
            trainable = [(n, p) for n, p in self.lm.model.named_parameters() if p.requires_grad]
            embeddings: Any = self.lm.transformer.get_input_embeddings()
            plain = {id(p) for p in embeddings.parameters()} if embeddings is not None else set()
            decayed = [p for _, p in trainable if p.ndim > 1 and id(p) not in plain]
            others = [p for _, p in trainable if p.ndim <= 1 or id(p) in plain]
            groups = [{"params": decayed, "weight_decay": c.weight_decay}, {"params": others, "weight_decay": 0.0}]
            betas = (c.adam_beta1, c.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                [g for g in groups if g["params"]], lr=c.learning_rate, betas=betas, eps=c.adam_epsilon, fused=True
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            warmup = round(self.config.warmup_ratio * num_training_steps)
            kwargs = dict(self.config.lr_scheduler_kwargs)
            self.lr_scheduler = get_scheduler(
                self.config.lr_scheduler_type, optimizer or self.optimizer, warmup, num_training_steps, kwargs
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        parameters = [p for p in self.lm.model.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm, foreach=True)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """All batches of one optimiser step; their summed loss over the step's denominator."""
        work = self.source.step(int(inputs["step"]))
        if work.round != self._round:
            self._begin_round(work)
        model.train()
        value = self._sum(work, backward=True) / work.denominator
        if not torch.isfinite(value):
            numbers = ", ".join(str(int(work.store.row_index[r]) + 1) for b in work.batches[:4] for r in b[:8])
            raise UserError(
                f"the loss is {float(value)} at step {self.state.global_step + 1}",
                f"rows {numbers} …",
                "a lower --learning-rate; weights are as before this step in the last checkpoint",
            )
        self.sums["denominator"] += work.denominator  # type: ignore[assignment]
        self.tokens_seen += work.tokens
        return value

    def _begin_round(self, work: Work) -> None:
        if self.config.optimizer == "fresh" and self._round >= 0:
            self.optimizer.state.clear()
        self._round = work.round

    def _sum(self, work: Work, *, backward: bool) -> torch.Tensor:
        device = self.lm.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for rows in work.batches:
            batch = pack(work.store, rows).to(device)
            reference = self.reference(batch, work) if self.reference is not None else None
            sums = self.sums if backward else Counter()
            with packed_execution(self.lm.model), torch.set_grad_enabled(backward):
                with autocast(self.arithmetic, device):
                    loss = loss_of(
                        self.lm.model, batch, self.objective, work.rows, work.store.row_index[rows], reference, sums
                    )
                if backward:
                    (loss / work.denominator).backward()
            total += loss.detach().double()
        return total.float()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss on the evaluation rows, in eval mode."""
        self.model.eval()  # type: ignore[union-attr]
        assert self.evaluation is not None
        value = float(self._sum(self.evaluation, backward=False)) / self.evaluation.denominator
        self.model.train()  # type: ignore[union-attr]
        self.log({"eval_loss": value})
        return {"eval_loss": value}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now = time.monotonic()
        if "loss" in logs and now > self._kept_time:
            logs["tokens_per_second"] = round((self.tokens_seen - self._kept_tokens) / (now - self._kept_time), 1)
            self._kept_tokens, self._kept_time = self.tokens_seen, now
            denominator = self.sums.pop("denominator", 0)
            for name, value in self.sums.items():
                logs[name] = value / denominator if denominator else 0.0
            self.sums.clear()
            logs["tokens"] = self.tokens_seen
        logs["epoch"] = round(self.source.epoch(self.state.global_step), 4)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """``step-N.tmp``, fsynced, then renamed: only whole checkpoints are ever resumed from."""
        final = self.checkpoints / f"step-{self.state.global_step:08}"
        if final.exists():
            return
        part = final.with_suffix(".tmp")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(trainable_state(self.lm.model), part / WEIGHTS)
        self._save_optimizer_and_scheduler(str(part))
        self._save_scaler(str(part))
        self._save_rng_state(str(part))
        self.state.save_to_json(str(part / "trainer_state.json"))
        torch.save({"tokens_seen": self.tokens_seen, "round": self._round}, part / "packed.pt")
        self.lines.sync()
        fsync_tree(part)
        os.rename(part, final)
        fsync_directory(self.checkpoints)
        for old in finished_checkpoints(self.checkpoints)[:-2]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(self.lm.model, Path(resume_from_checkpoint))
        own = torch.load(Path(resume_from_checkpoint) / "packed.pt", weights_only=True)
        self.tokens_seen = self._kept_tokens = own["tokens_seen"]
        self._round = own["round"]


class _Bookkeeping(TrainerCallback):
    """Lines of metrics.jsonl; the base's version after every step that changed it."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer
        self.base = any(p.requires_grad and "lora" not in n for n, p in trainer.lm.model.named_parameters())

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.base:
            self.trainer.lm.base_changed()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        self.trainer.lines.log(state.global_step, **(logs or {}))


def finished_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters by name; tied ones once."""
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Copy a checkpoint's weights into the model's trainable parameters."""
    stored = load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(stored[name])
