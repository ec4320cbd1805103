"""What a claim measures: numbers with a rule that says when they support it. Knows nothing about any experiment."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Rule = Literal["difference>=", "difference<=", "ratio>=", "ratio<=", "ours>=", "ours<=", "mean difference>="]


@dataclass(frozen=True, slots=True)
class Effect:
    """One number a side, from one seed: `ours` beside `baseline`, and what would have to be true of them.

    An ordering a < b < c is two effects. With "mean difference>=" the mean over seeds decides, whatever its interval. A
    `control` (the effect must vanish here, the probe must work there) has to hold too. `baseline` is None where the
    rule speaks of `ours` alone.
    """

    name: str
    metric: str
    ours: float
    baseline: float | None
    threshold: float
    rule: Rule
    control: bool = False

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"effect {self.name!r}: rule {self.rule!r} is none of {', '.join(get_args(Rule))}")
        numbers = {"ours": self.ours, "threshold": self.threshold}
        if not self.rule.startswith("ours"):
            if self.baseline is None:
                raise ValueError(f"effect {self.name!r}: rule {self.rule!r} needs a baseline")
            if self.rule.startswith("ratio") and self.baseline <= 0:
                raise ValueError(f"effect {self.name!r}: a ratio needs a baseline above 0, not {self.baseline}")
        if self.baseline is not None:
            numbers["baseline"] = self.baseline
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"effect {self.name!r}: {name} is {value}")


@dataclass(frozen=True, slots=True)
class Part:
    """One experiment of a claim: ``run(seed, workdir)`` measures all its effects for one seed.

    What an earlier run of the same code has left in `workdir` when it was cut off is there again, for `run` to go on
    from: finished artifacts are found by their keys, and `maypole.claims.arm` keeps what is measured on the way. A
    `timed` part runs alone on the machine and begins in an empty one, because its numbers are seconds. What is written
    to ``workdir/figures/`` is listed in the result.
    """

    run: Callable[[int, Path], list[Effect]]
    timed: bool = False
