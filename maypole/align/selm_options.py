"""How far SELM looks beyond what the policy says already. Knows nothing about torch: command lines import it."""

import logging
from dataclasses import dataclass
from typing import Literal

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError

FLIPS = 0.5
"""The α from which an answer that is both the best and the reference's own is unlearnt at the start of a round."""
LARGE = 0.2
"""The α above which rewards fell in small runs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelmOptions:
    """The optimism term, and the candidates of a prompt: the answer it pushes away from, `samples` more, and those in
    the columns `answers` of the data."""

    alpha: float = setting(1e-3, help="how much the unknown attracts, as a share of beta; below 0.5, 0: plain DPO")
    optimism_sample: Literal["greedy", "sample"] = setting(
        "greedy", help="the policy's answer to leave: the greedy one, or one drawn as the paper's formula has it"
    )
    samples: int = setting(0, help="answers drawn from the policy beside that one")
    answers: tuple[str, ...] = setting(
        ("chosen", "rejected"), help="columns of the prompt rows whose answers are candidates too"
    )
    floor: float | None = setting(None, help="stop pushing an answer that is so many nats less likely, e.g. -20")
    allow_negative: bool = setting(False, help="let alpha be below 0: away from the unknown, as a control")

    def __post_init__(self) -> None:
        check("optimism_sample", self.optimism_sample, ("greedy", "sample"))
        if self.alpha < 0 and not self.allow_negative:
            raise ConfigError("alpha", self.alpha, "0 or more (below 0 only as a control, with allow_negative)")
        if self.alpha >= FLIPS:
            raise ConfigError("alpha", self.alpha, f"below {FLIPS}: from there on the best answers are unlearnt")
        if self.alpha > LARGE:
            log.warning("alpha %g is large: above %g the policy may forget how to answer", self.alpha, LARGE)
        if self.samples < 0:
            raise ConfigError("samples", self.samples, "0 or more")
        if self.floor is not None and self.floor >= 0:
            raise ConfigError("floor", self.floor, "below 0")
        pass_on(SelmOptions, self)
