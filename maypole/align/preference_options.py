"""Which preference loss, with which parameters. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass, fields

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError

_DEFAULTS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "rpo": {"beta": 0.1, "rpo_alpha": 1.0},
    "ipo": {"beta": 0.1},
    "ipo-sum": {"beta": 0.1},
    "hinge": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
}
"""Loss -> its parameters and what they are unless given; a loss has no others."""

LOSSES = tuple(_DEFAULTS)
WITHOUT_REFERENCE = frozenset({"simpo", "orpo"})


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions:
    """A loss by its name; None is the loss's own default, and all that a parameter can be where a loss has none."""

    loss: str = setting("dpo", help=f"{', '.join(LOSSES)}; kto takes rows with a label instead of pairs")
    beta: float | None = setting(None, help="how strongly to hold to the reference; default 0.1 (simpo, per token: 2)")
    label_smoothing: float | None = setting(None, help="share of wrong labels, of cdpo and robust; default 0.1")
    rpo_alpha: float | None = setting(None, help="weight of the chosen answer's likelihood, of rpo; default 1")
    gamma: float | None = setting(None, help="lead that simpo asks of the chosen answer; default 1")
    desirable_weight: float | None = setting(None, help="of kto's good answers; default 1")
    undesirable_weight: float | None = setting(None, help="of kto's bad answers; default 1")

    def __post_init__(self) -> None:
        check("loss", self.loss, LOSSES)
        own = _DEFAULTS[self.loss]
        for name in (f.name for f in fields(PreferenceOptions) if f.name != "loss"):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in own:
                takers = ", ".join(loss for loss, parameters in _DEFAULTS.items() if name in parameters)
                raise ConfigError(name, value, f"nothing with --loss {self.loss}; it belongs to {takers}")
            if name == "label_smoothing" and not 0 <= value < 0.5:
                raise ConfigError(name, value, "0 up to, not including, 0.5")
            if (name == "beta" and value <= 0) or value < 0:
                raise ConfigError(name, value, "above 0" if name == "beta" else "0 or more")
        pass_on(PreferenceOptions, self)

    @property
    def parameters(self) -> dict[str, float]:
        """What the loss's function takes by keyword."""
        given = {name: getattr(self, name) for name in _DEFAULTS[self.loss]}
        return {name: _DEFAULTS[self.loss][name] if value is None else value for name, value in given.items()}
