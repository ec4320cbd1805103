"""The tour's command: what it prints when it is done. Knows nothing about its stages."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maypole.tour.options import TourOptions
from maypole.tour.stages import BY_NAME

if TYPE_CHECKING:
    from maypole.tour.report import Report

DEFAULTS = TourOptions()
PROMPT = "Return the"
"""Words that begin many a text."""


@dataclass(frozen=True)
class TourResult:
    """What changed, and where the report and the trained model lie."""

    report: "Report"
    out: Path

    @property
    def next(self) -> str:
        """A command that shows the trained model at work."""
        return shlex.join(["maypole", "engine", "generate", "--model", str(self.model), "--prompt", PROMPT])

    @property
    def model(self) -> Path:
        left_out = any(stage.name == "align" and stage.state == "empty" for stage in self.report.stages)
        return self.out / BY_NAME["adapt" if left_out else "align"].directory

    def to_json(self) -> dict[str, Any]:
        from maypole.tour.measures import summary

        return {
            "model": self.report.model,
            "corpus": self.report.corpus,
            "seconds": round(self.report.seconds, 1),
            "verdict": self.report.verdict,
            "measures": [{"measure": name, **numbers} for name, numbers in summary(self.report.measures).items()],
            "stages": [
                {"stage": s.name, "state": s.state, "seconds": s.seconds} for s in self.report.stages if s.seconds
            ],
            "tuned": str(self.model),
            "report": str(self.out / "report.html"),
            "next": self.next,
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from maypole.tour.report.words import bounds, duration, number, visible

        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(Text(f"done in {duration(self.report.seconds)}"))
        for name in ("before", "after", "change [95 % CI]", "n"):
            table.add_column(Text(name), justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        for m in self.report.measures:
            change = f"{number(m.change, m.digits, signed=True)} {bounds(m.interval, m.digits)}"
            sides = (number(m.before, m.digits), number(m.after, m.digits))
            table.add_row(Text(f"  {m.name}"), *sides, Text(change), number(m.n, 0), m.verdict)
        lines = {"verdict": self.report.verdict, "report": str(self.out / "report.html"), "next": self.next}
        return Group(table, *(Text(visible(f"{name:<8}{text}")) for name, text in lines.items()))


def tour(config: TourOptions = DEFAULTS) -> TourResult:
    """Take a model through its stages on your text and write a report of what improved.

    Stopped and started again, it goes on.

        maypole tour
        maypole tour --model base --corpus notes/ --out run
    """
    begun = time.monotonic()
    from maypole.tour.run import run_tour

    return TourResult(run_tour(config, begun), config.out)
