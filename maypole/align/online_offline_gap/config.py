"""Which experiments, over which settings. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass, replace
from typing import Literal

from maypole.align.preference_options import LOSSES, WITHOUT_REFERENCE, PreferenceOptions
from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError
from maypole.train.config import TrainConfig

ONLINE, OFFLINE, REPLAY, SHUFFLED = "online", "offline", "replay", "shuffled"
QUALITY, PROXIMITY = "quality", "proximity"
BEST_ONLINE, BEST_OFFLINE = "best-of-2-online", "best-of-2-offline"

EXPERIMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "gap": ((ONLINE, OFFLINE),),
    "coverage": ((ONLINE, OFFLINE), (ONLINE, REPLAY), (ONLINE, SHUFFLED)),
    "quality": ((ONLINE, QUALITY), (QUALITY, OFFLINE)),
    "classification": ((ONLINE, OFFLINE),),
    "loss": ((BEST_ONLINE, BEST_OFFLINE),),
    "scale": ((ONLINE, OFFLINE),),
    "proximity": ((ONLINE, PROXIMITY), (PROXIMITY, OFFLINE)),
}
"""Experiment -> which arm is compared with which; `scale` does so with policies of every size."""

Labels = Literal["hard", "drawn"]
CONTRASTIVE = tuple(loss for loss in LOSSES if loss not in (*WITHOUT_REFERENCE, "kto"))


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """All arms take as many steps of as many rows by one optimiser; every beta is trained at every learning rate."""

    experiments: tuple[str, ...] = setting(("gap",), help=f"{', '.join(EXPERIMENTS)}; or all")
    steps: int = setting(240, help="optimiser steps of every run")
    eval_every: int = setting(60, help="steps between measurements")
    betas: tuple[float, ...] = setting((0.03, 0.1, 0.3, 1.0), help="how strongly the loss holds to the reference")
    rates: tuple[float, ...] = setting((1.0, 0.5), help="multiples of train.learning_rate")
    loss: str = setting("ipo-sum", help=f"one for both sides: {', '.join(CONTRASTIVE)}; ipo is per token")
    labels: Labels = setting("hard", help="of fixed pairs; hard: the likelier answer; drawn: with its probability")
    fresh_labels: Labels = setting("hard", help="the same of the online arms' answers, by the proxy")
    refresh_every: int = setting(1, help="steps that the online arms learn from one batch of samples; 1: always fresh")
    max_tokens: int = setting(256, help="longest answer, in training and when measured")
    both_orders: bool = setting(True, help="ask a judge that compares two answers in both orders")
    on_judge_error: Literal["stop", "skip-row"] = setting("stop", help="a judge that fails: stop, or leave out the row")

    def __post_init__(self) -> None:
        named = tuple(name for words in self.experiments for name in words.split(",") if name)
        named = tuple(EXPERIMENTS) if named == ("all",) else named
        object.__setattr__(self, "experiments", named)
        for name in named:
            check("experiments", name, tuple(EXPERIMENTS))
        check("loss", self.loss, CONTRASTIVE)
        for name in ("labels", "fresh_labels"):
            check(name, getattr(self, name), ("hard", "drawn"))
        check("on_judge_error", self.on_judge_error, ("stop", "skip-row"))
        for name, values in {"experiments": named, "betas": self.betas, "rates": self.rates}.items():
            if not values:
                raise ConfigError(name, values, "one or more")
            if len(set(values)) < len(values):
                raise ConfigError(name, values, "each once")
        for name in ("betas", "rates"):
            if any(not value > 0 for value in getattr(self, name)):
                raise ConfigError(name, getattr(self, name), "numbers above 0")
        for name in ("steps", "eval_every", "refresh_every", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "1 or more")
        for name in ("eval_every", "refresh_every"):
            if self.steps % getattr(self, name):
                raise ConfigError(name, getattr(self, name), f"a divisor of steps, {self.steps}")
        pass_on(GapConfig, self)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that the experiments need, each once, online ones first."""
        wanted = {arm for name in self.experiments for pair in EXPERIMENTS[name] for arm in pair}
        order = (ONLINE, BEST_ONLINE, OFFLINE, REPLAY, SHUFFLED, QUALITY, PROXIMITY, BEST_OFFLINE)
        return tuple(arm for arm in order if arm in wanted)

    def preference(self, beta: float) -> PreferenceOptions:
        return PreferenceOptions(loss=self.loss, beta=beta)

    def training(self, train: TrainConfig, rate: float) -> TrainConfig:
        """`train` for a run at that multiple of its learning rate."""
        return replace(train, max_steps=self.steps, learning_rate=train.learning_rate * rate)


def check_training(train: TrainConfig) -> None:
    """ConfigError where `train` says what `GapConfig` does."""
    plain = TrainConfig()
    for name in ("max_steps", "num_train_epochs"):
        if getattr(train, name) != getattr(plain, name):
            raise ConfigError(f"train.{name}", getattr(train, name), "nothing: --steps is what every run takes")
    for name in ("optimizer", "init", "round_learning_rates"):
        if getattr(train, name) != getattr(plain, name):
            what = "nothing: one optimiser and one schedule from the first step to the last, in all arms"
            raise ConfigError(f"train.{name}", getattr(train, name), what)
