"""What a report says, as data: measures before and after, stages, examples, plots with their numbers.

Frozen and plain, so that a report is a pure function of it. Knows nothing about HTML or matplotlib's objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maypole.core.statistics import Better, Interval, verdict

StageState = Literal["not yet", "running", "done", "failed", "empty", "interrupted", "absent"]
ReportState = Literal["running", "complete", "interrupted", "failed"]
Cell = str | int | float | None

PLOTS_A_STAGE = 2
EXAMPLES_A_STAGE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number before and after with the interval of its change (paired bootstrap), over `n` items; `meaning` says
    to a stranger what it is."""

    name: str
    before: float
    after: float
    interval: Interval | None
    n: int
    unit: str = ""
    better: Better
    digits: int = 2
    meaning: str = ""

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """ "better", "worse", "no clear change", or "not tested" without an interval."""
        return "not tested" if self.interval is None else verdict(self.interval, self.better)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows; a column of numbers is set right, floats with four significant digits unless text is given."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells in a row of {len(self.columns)} columns: {list(row)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture (SVG as matplotlib writes it), its finding as one sentence, and its numbers."""

    title: str
    finding: str
    svg: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A text as it came before and after; `before` None shows `after` alone. `label` says how it was chosen."""

    label: str
    prompt: str = ""
    before: str | None = None
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the tour: its state, one sentence of finding, and what supports it. One that no tour has yet is
    "absent", and its finding completes "It …".

    `provenance` are pairs in the order shown: config, inputs with sha256, seeds, versions, device, threads, seconds,
    memory, reused or computed; no user, host or absolute path. `log` is the run's, of which the last lines are shown.
    """

    name: str
    number: int
    state: StageState = "not yet"
    seconds: float | None = None
    finding: str = ""
    plots: Sequence[Plot] = ()
    table: Table | None = None
    examples: Sequence[Example] = ()
    repeat_command: str = ""
    repeat_python: str = ""
    provenance: Sequence[tuple[str, str]] = ()
    error: str = ""
    log: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.plots) > PLOTS_A_STAGE:
            raise ValueError(f"stage {self.name}: {len(self.plots)} plots, at most {PLOTS_A_STAGE}")
        if len(self.examples) > EXAMPLES_A_STAGE:
            raise ValueError(f"stage {self.name}: {len(self.examples)} examples, at most {EXAMPLES_A_STAGE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run: what was done to which model with which corpus, and how it came out.

    seconds: wall time; peak_rss: bytes; date: as it shall be read. `resume_command` continues a run that is not
    complete. `draws` and `seed` are the bootstrap's, `training_seeds` how many runs the numbers rest on.
    """

    title: str
    model: str
    corpus: str
    date: str
    seconds: float
    peak_rss: int
    state: ReportState
    measures: Sequence[Measure] = ()
    stages: Sequence[Stage] = ()
    resume_command: str = ""
    draws: int = 10_000
    seed: int = 0
    training_seeds: int = 1

    @property
    def at(self) -> str:
        """The stage where the run stands or stopped, "" when it is complete."""
        unfinished = [s for s in self.stages if s.state in ("running", "failed", "interrupted")]
        waiting = [s for s in self.stages if s.state == "not yet"]
        return (unfinished + waiting)[0].name if self.state != "complete" and unfinished + waiting else ""

    @property
    def verdict(self) -> str:
        """ "of 4 measures 3 better, 1 no clear change, 0 worse"."""
        said = [m.verdict for m in self.measures]
        words = ["better", "no clear change", "worse"] + ["not tested"] * ("not tested" in said)
        what = "measure" if len(said) == 1 else "measures"
        return f"of {len(said)} {what} " + ", ".join(f"{said.count(word)} {word}" for word in words)
