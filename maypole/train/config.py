"""How to train, under the names that transformers uses. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass
from typing import Any, Literal

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError
from maypole.models.peft_options import PeftOptions

Precision = Literal["auto", "fp32", "bf16"]
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr", "warmup_stable_decay")
OPTIMIZERS = ("adamw_torch", "rmsprop")
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One optimiser step sees `examples_per_step` rows, whatever memory allows at a time.

    `tokens_per_batch` and `gradient_checkpointing` change memory and speed, never what is learnt.
    """

    learning_rate: float = setting(2e-5, help="peak learning rate; adapters want about 2e-4")
    round_learning_rates: tuple[float, ...] = setting((), help="one for each round of an online run, instead of one")
    num_train_epochs: float = setting(1.0, help="passes over the rows")
    max_steps: int = setting(-1, help="optimiser steps, instead of epochs; -1: as many as the epochs have")
    examples_per_step: int = setting(32, help="rows in one optimiser step")
    shuffle: bool = setting(True, help="draw the order of the rows anew in every pass; else as they stand")
    max_length: int | None = setting(None, help="longest row in tokens; default: what the model has positions for")
    lr_scheduler_type: str = setting("linear", help="how the rate falls: " + ", ".join(SCHEDULES))
    lr_scheduler_kwargs: dict[str, Any] = setting(factory=dict, help="further settings of that, each as .NAME VALUE")
    warmup_ratio: float = setting(0.0, help="share of the steps with a rising learning rate")
    optim: str = setting("adamw_torch", help=", ".join(OPTIMIZERS))
    weight_decay: float = setting(0.0, help="on matrices; never on embeddings, norms and biases")
    adam_beta1: float = setting(0.9, help="how much of AdamW's mean gradient is kept in a step")
    adam_beta2: float = setting(0.999, help="how much of its mean squared gradient is kept")
    adam_epsilon: float = setting(1e-8, help="added to its denominator")
    max_grad_norm: float = setting(1.0, help="clip the gradient at this norm; 0: never")
    precision: Precision = setting("auto", help="auto: bf16 autocast where the hardware has it, else fp32")
    peft: PeftOptions | None = setting(None, help="train an adapter instead of all weights")
    reference_logps: Literal["cached", "live"] = setting("cached", help="keep the reference's log-probs, or recompute")
    optimizer: Literal["continue", "fresh"] = setting(
        "continue", help="at the boundary of two rounds: goes on, or its state and the schedule begin anew"
    )
    init: Literal["previous", "initial"] = setting(
        "previous", help="at that boundary: the weights at hand go on, or the first ones begin again"
    )
    tokens_per_batch: int | Literal["auto"] = setting("auto", key=False, help="tokens computed at a time")
    gradient_checkpointing: bool | Literal["auto"] = setting("auto", key=False, help="recompute to save memory")
    save_steps: int = setting(200, key=False, help="steps between checkpoints")
    eval_steps: int = setting(0, key=False, help="steps between evaluations on --eval-data; 0: at the end")
    logging_steps: int = setting(10, key=False, help="steps between lines of metrics.jsonl")
    report_to: tuple[str, ...] = setting((), key=False, help="where metrics go besides: " + ", ".join(TRACKERS))

    def __post_init__(self) -> None:
        check("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        check("precision", self.precision, ("auto", "fp32", "bf16"))
        check("reference_logps", self.reference_logps, ("cached", "live"))
        check("optimizer", self.optimizer, ("continue", "fresh"))
        check("init", self.init, ("previous", "initial"))
        if self.init == "initial" and self.optimizer != "fresh":
            raise ConfigError("init", self.init, "previous, or optimizer fresh: the first weights have no state yet")
        check("optim", self.optim, OPTIMIZERS)
        for tracker in self.report_to:
            check("report_to", tracker, TRACKERS)
        for name in ("examples_per_step", "save_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "1 or more")
        if self.learning_rate <= 0:
            raise ConfigError("learning_rate", self.learning_rate, "above 0")
        if any(rate <= 0 for rate in self.round_learning_rates):
            raise ConfigError("round_learning_rates", self.round_learning_rates, "above 0")
        if self.round_learning_rates and self.optimizer != "fresh":
            what = "one schedule for all rounds, learning_rate; or optimizer fresh, with a schedule for each"
            raise ConfigError("round_learning_rates", self.round_learning_rates, what)
        if self.max_steps == 0 or self.max_steps < -1:
            raise ConfigError("max_steps", self.max_steps, "1 or more, or -1 to go by epochs")
        if self.max_steps < 0 and self.num_train_epochs <= 0:
            raise ConfigError("num_train_epochs", self.num_train_epochs, "above 0")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError("max_length", self.max_length, "2 or more")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ConfigError("warmup_ratio", self.warmup_ratio, "0 up to, not including, 1")
        if self.tokens_per_batch != "auto" and self.tokens_per_batch < 1:
            raise ConfigError("tokens_per_batch", self.tokens_per_batch, "auto, or 1 or more")
        for name in ("max_grad_norm", "weight_decay", "eval_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "0 or more")
        pass_on(TrainConfig, self)
