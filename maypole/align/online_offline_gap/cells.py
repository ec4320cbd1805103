"""The runs that a set of experiments needs, by name. Knows nothing about torch or what a run does."""

from collections.abc import Sequence
from dataclasses import dataclass

from maypole.align.online_offline_gap.config import (
    BEST_OFFLINE,
    BEST_ONLINE,
    OFFLINE,
    ONLINE,
    PROXIMITY,
    QUALITY,
    REPLAY,
    SHUFFLED,
    GapConfig,
)

ROWS = {OFFLINE: "pairs", BEST_OFFLINE: "pairs", QUALITY: "quality", PROXIMITY: "proximity"}
"""Arm that learns from fixed rows -> what they are called."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: an arm at a beta (None where the loss has none), a multiple of the learning rate, a policy.

    `size` is the policy's name among several, "" for the one that all experiments but `scale` are about.
    """

    arm: str
    beta: float | None
    rate: float
    size: str = ""

    @property
    def name(self) -> str:
        parts = [self.size, self.arm, "" if self.beta is None else f"beta-{self.beta:g}", f"rate-{self.rate:g}"]
        return "-".join(filter(None, parts))

    @property
    def of(self) -> "Cell | None":
        """The online run whose rows this one learns from again."""
        return Cell(ONLINE, self.beta, self.rate, self.size) if self.arm in (REPLAY, SHUFFLED) else None

    @property
    def rows(self) -> str | None:
        """The fixed rows that it learns from."""
        return ROWS.get(self.arm)


def cells(config: GapConfig, sizes: Sequence[str] = ()) -> tuple[Cell, ...]:
    """Every run, those that others learn from first; `sizes` are the further policies of `scale`."""
    found = [cell for arm in config.arms for cell in _swept(config, arm)]
    if "scale" in config.experiments:
        found += [cell for size in sizes for arm in (ONLINE, OFFLINE) for cell in _swept(config, arm, size)]
    return tuple(sorted(found, key=lambda cell: cell.of is not None))


def _swept(config: GapConfig, arm: str, size: str = "") -> list[Cell]:
    betas = (None,) if arm in (BEST_ONLINE, BEST_OFFLINE) else config.betas
    return [Cell(arm, beta, rate, size) for beta in betas for rate in config.rates]
