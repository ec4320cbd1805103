"""Which two of a prompt's answers are learnt from, and what length costs. Knows nothing about torch: command lines
import it."""

from dataclasses import dataclass
from typing import Literal

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError

PAIRS = ("max_min", "max_max", "max_random", "random")
UNITS = ("token", "char")


@dataclass(frozen=True, kw_only=True)
class WorkflowOptions:
    """Two answers of a prompt, by scores less what their length costs, and the temperatures that drew them."""

    pair: Literal["max_min", "max_max", "max_random", "random"] = setting(
        "max_min", help="best and worst; max_max: best and second best; max_random: best and any; random: any two"
    )
    length_penalty: float = setting(0.0, help="what each token of an answer takes from its score")
    length_unit: Literal["token", "char"] = setting("token", help="token, or char: what length_penalty counts")
    temperatures: tuple[float, ...] = setting((), help="among which a prompt's draws are shared out")

    def __post_init__(self) -> None:
        check("pair", self.pair, PAIRS)
        check("length_unit", self.length_unit, UNITS)
        if not 0 <= self.length_penalty < float("inf"):
            raise ConfigError("length_penalty", self.length_penalty, "0 or more")
        if any(t < 0 for t in self.temperatures) or len({*self.temperatures}) < len(self.temperatures):
            raise ConfigError("temperature", self.temperatures, "0 or more each, none twice")
        pass_on(WorkflowOptions, self)
