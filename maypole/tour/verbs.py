"""The tour's command. Knows nothing about its stages."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maypole.core.config import setting
from maypole.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TourOptions:
    """What to improve, on which texts, in how many minutes."""

    model: str | None = setting(None, input=True, help="directory or hub id; default: a small base that ships")
    corpus: Path | None = setting(None, input=True, help="file or folder of text; default: Python's documentation")
    out: Path = setting(Path("run"), key=False, help="directory of the report and all results")
    minutes: float = setting(6.0, help="about how long it may take on this machine")
    seed: int = setting(0, help="everything random is derived from it")
    own_data_only: bool = setting(False, help="leave out what needs maypole's own small world")
    threads: int | None = setting(None, key=False, help="CPU threads; default: as many as cores")

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ConfigError("minutes", self.minutes, "above 0")


@dataclass(frozen=True)
class TourResult:
    """What changed, and where the report lies."""

    measures: tuple[Any, ...]
    report: str

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "measure": m.name, "before": m.before, "after": m.after, "change": m.change,
                "ci95": [m.interval.low, m.interval.high], "n": m.n, "verdict": m.verdict,
            }
            for m in self.measures
        ]  # fmt: skip
        return {"measures": rows, "report": self.report}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", "before", "after", "change [95 % CI]", "n", "", box=None)
        for m in self.measures:
            change = f"{m.change:+.2f} [{m.interval.low:+.2f}, {m.interval.high:+.2f}]"
            table.add_row(m.name, f"{m.before:.2f}", f"{m.after:.2f}", change, str(m.n), m.verdict)
        return Group(table, Text(f"report  {self.report}"))


def tour(config: TourOptions) -> TourResult:
    """Take a model through its stages on your text and write a report of what improved.

    Stopped and started again, it goes on.

        maypole tour
        maypole tour --model DIR --corpus notes/ --out run
    """
    from maypole.tour.run import TourSettings, run

    settings = TourSettings(
        model=config.model, corpus=config.corpus, minutes=config.minutes, seed=config.seed,
        own_data_only=config.own_data_only,
    )  # fmt: skip
    command = (
        shlex.join(["maypole", *sys.argv[1:]]) if sys.argv[1:2] == ["tour"] else f"maypole tour --out {config.out}"
    )
    return TourResult(tuple(run(settings, config.out, command)), str(config.out / "report.html"))
