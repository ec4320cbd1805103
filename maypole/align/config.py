"""How an online run goes round. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass
from typing import Literal

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """A round draws prompts, samples, has them judged and trains on what its method makes of them.

    With `prompts_per_round` equal to `train.examples_per_step` the policy is fresh at every step; with the default a
    round is a whole slice of the prompts.
    """

    rounds: int = setting(3, help="times that the policy samples anew")
    prompts_per_round: int | None = setting(None, help="drawn without repetition; default: all prompts, shared out")
    reference: Literal["initial", "previous"] | None = setting(
        None, help="held to itself before its first step (initial, the default; not of sppo), or when a round began"
    )
    history: Literal["none", "all", "sample"] = setting(
        "none", help="rows of earlier rounds to learn from again: none, all, or as many as the round has itself"
    )
    both_orders: bool = setting(True, help="ask a judge that compares two answers in both orders")
    eval_max_tokens: int = setting(256, help="longest answer to a prompt of --eval-data")
    max_kl: float | None = setting(
        None, help="end after a round that leaves the policy so many nats an answer from its start, on --eval-data"
    )
    on_judge_error: Literal["stop", "skip-row"] = setting("stop", help="a judge that fails: stop, or leave out the row")

    def __post_init__(self) -> None:
        check("reference", self.reference, (None, "initial", "previous"))
        check("history", self.history, ("none", "all", "sample"))
        check("on_judge_error", self.on_judge_error, ("stop", "skip-row"))
        if self.rounds < 1:
            raise ConfigError("rounds", self.rounds, "1 or more")
        if self.prompts_per_round is not None and self.prompts_per_round < 1:
            raise ConfigError("prompts_per_round", self.prompts_per_round, "1 or more")
        if self.eval_max_tokens < 1:
            raise ConfigError("eval_max_tokens", self.eval_max_tokens, "1 or more")
        if self.max_kl is not None and self.max_kl <= 0:
            raise ConfigError("max_kl", self.max_kl, "above 0")
        pass_on(OnlineConfig, self)
