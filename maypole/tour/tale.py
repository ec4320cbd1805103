"""A tour as it is told while it happens: lines for who waits, and the report, written again around every stage.

Knows nothing about which stages there are or what they do.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.progress import duration, say
from maypole.tour import adapt, align, curate, story
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus
from maypole.tour.folder import TourFolder
from maypole.tour.options import TourOptions
from maypole.tour.plan import Plan
from maypole.tour.report import Report, write
from maypole.tour.report.model import ReportState
from maypole.tour.telling import Facts, Progress

logger = logging.getLogger(__name__)
SAVED = {"curate": curate.saved, "adapt": adapt.saved, "align": align.saved}
"""Says of an unfinished stage what it goes on from; evaluation is short enough to say nothing."""


class Tale:
    """`report` is what the folder's page says: written when a stage begins or ends, when the tour is interrupted, and
    when it fails."""

    def __init__(self, options: TourOptions, base: Base, corpus: Corpus, plan: Plan, folder: TourFolder) -> None:
        self.facts = Facts(options, base.name, base.own, corpus.summary, plan)
        self.folder = folder
        self.stages: dict[str, Progress] = {}
        self._pages: story.Pages = {}
        self.report = self._tell("running")

    def stage(
        self,
        name: str,
        amount: str,
        seconds: float,
        *,
        config: Any,
        inputs: dict[str, object],
        work: Callable[[Artifact], None],
    ) -> Artifact:
        """The finished artifact of a stage: found, or made by `work`, which may go on with what it left there."""
        self.stages[name] = Progress("running")
        self._tell("running")
        artifact = self.folder.stage(name, config=asdict(config), inputs=inputs, seed=self.facts.options.seed)
        found = artifact.finished
        before = _saved(name, artifact.path)
        goes_on = f", going on after {before}" if before else ""
        say(f"{name}: done before" if found else f"{name}: {amount}, about {duration(seconds)}{goes_on}")
        with artifact:
            if not found:
                work(artifact)
        self.stages[name] = Progress("done", artifact, reused=found)
        self._tell("running")
        told = next(stage for stage in self.report.stages if stage.name == name)
        say(f" ok  {name}  {duration(artifact.manifest['wall_seconds'])}  {told.finding}")
        return artifact

    def __enter__(self) -> "Tale":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._tell("complete")
            return
        interrupted = isinstance(error, KeyboardInterrupt)
        state = "interrupted" if interrupted else "failed"
        for name, stage in self.stages.items():
            if stage.state == "running":
                kept = _saved(name, self.folder.unfinished(name))
                if interrupted:
                    self.stages[name] = Progress(state, saved=kept)
                    say(f"stopped at {name}" + (f"; {kept} is saved" if kept else ""))
                else:
                    self.stages[name] = Progress(state, saved=kept, error=str(error), log=self.folder.log(name))
        try:
            self._tell(state)
        except OSError as problem:  # a full disk, often: what stopped the tour is what the user needs to read
            logger.warning("the report could not be written: %s", problem)

    def _tell(self, state: ReportState) -> Report:
        seconds, peak = self.facts.plan.preparation + self.folder.seconds(), self.folder.peak_memory()
        self.report = story.report(self.facts, self.stages, state, seconds, peak, self._pages)
        write(self.report, self.folder.report)
        return self.report


def _saved(name: str, stage: Path) -> str:
    return SAVED[name](stage) if name in SAVED else ""
