"""Which adapter to train, as plain data. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass, field
from typing import Any

from maypole.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PeftOptions:
    """An adapter to be made. `type` is a PEFT type in lower case or one that an installed package registers.

    `target_modules` are names or endings of module names; "all-linear" means every linear layer but the head.
    `options` are further fields of the type's config class, e.g. ``{"use_dora": True}``.
    """

    type: str = "lora"
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError("peft.r", self.r, "1 or more")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError("peft.lora_dropout", self.lora_dropout, "0 up to, not including, 1")
