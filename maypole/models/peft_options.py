"""Which adapter to train, as plain data. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass
from typing import Any

from maypole.core.config import setting
from maypole.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PeftOptions:
    """An adapter to be made. `type` is a PEFT type in lower case or one that an installed package registers.

    `target_modules` are names or endings of module names; "all-linear" means every linear layer but the head.
    `options` are further fields of the type's config class, e.g. ``{"use_dora": True}``.
    """

    type: str = setting("lora", help="train an adapter of this type; with no --peft flag at all: all weights")
    r: int = setting(16, help="its rank")
    lora_alpha: int = setting(32, help="its scale is lora_alpha / r")
    lora_dropout: float = setting(0.0, help="share of its inputs that a step leaves out")
    target_modules: tuple[str, ...] | str = setting(("all-linear",), help="names or endings of modules that get it")
    options: dict[str, Any] = setting(factory=dict, help="further fields of the type's config, each as .NAME VALUE")

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", (self.target_modules,))
        if self.r < 1:
            raise ConfigError("peft.r", self.r, "1 or more")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError("peft.lora_dropout", self.lora_dropout, "0 up to, not including, 1")
