"""A tour from start to end: its stages in order, each an artifact, the report written again around each of them.

Knows nothing about how a stage does its work or how a report looks.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from maypole.core.artifact import Artifact
from maypole.core.progress import duration, say
from maypole.core.seeds import derive
from maypole.tour import story
from maypole.tour.adapt import adapt, saved
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus, load_corpus
from maypole.tour.evaluate import evaluate
from maypole.tour.folder import TourFolder, opened
from maypole.tour.options import TourOptions
from maypole.tour.plan import Plan, available, divide
from maypole.tour.probe import probe
from maypole.tour.report import Report, write
from maypole.tour.report.model import ReportState

logger = logging.getLogger(__name__)


def run_tour(options: TourOptions, begun: float | None = None) -> Report:
    """Do what is left of the tour in ``options.out`` and return its report; Ctrl-C keeps all that is done.

    `begun` is when the clock of the minutes started, by `time.monotonic`; default: now.
    """
    begun = time.monotonic() if begun is None else begun
    base = Base.of(options.model)
    with opened(options.out) as folder:
        corpus = load_corpus(options.corpus)
        plan = folder.plan(_asked(options, base, corpus), lambda: _decide(options, base, corpus, begun))
        torch.set_num_threads(options.threads or plan.threads)
        say(f"model {base.name}  corpus {corpus.summary}  -> {options.out}/")
        tale = Tale(options, base, corpus, plan, folder)
        with tale:
            adapted = tale.stage(
                "adapt", f"{plan.adapt.steps:,} steps", plan.adapt.seconds,
                config=plan.adapt, inputs={"model": base.place, "corpus": corpus.train},
                work=lambda artifact: adapt(base, corpus, plan.adapt, artifact, seed=derive(options.seed, "adapt")),
            )  # fmt: skip
            tale.stage(
                "evaluate", f"{plan.evaluate.documents:,} documents, {plan.evaluate.questions:,} questions",
                plan.evaluate.seconds,
                config=plan.evaluate, inputs={"adapted": adapted, "corpus": corpus.held_out},
                work=lambda artifact: evaluate(base, corpus, plan.evaluate, adapted, artifact, options.seed),
            )  # fmt: skip
        return tale.report


def _asked(options: TourOptions, base: Base, corpus: Corpus) -> dict[str, Any]:
    return {
        "model": base.name,
        "model_identity": base.identity,
        "corpus": corpus.name,
        "corpus_identity": corpus.identity,
        "minutes": options.minutes,
        "seed": options.seed,
        "own_data_only": options.own_data_only,
    }


def _decide(options: TourOptions, base: Base, corpus: Corpus, begun: float) -> Plan:
    say("plan: measuring this machine for a few seconds")
    torch.set_num_threads(options.threads or base.threads or torch.get_num_threads())
    instruct = not options.own_data_only
    rates = probe(base, corpus, instruct=instruct, seed=options.seed)
    preparation = round(time.monotonic() - begun, 1)
    adapted, evaluated = divide(
        rates, available(options.minutes, preparation), train=len(corpus.train), held_out=len(corpus.held_out),
        instruct=instruct, general=instruct or not base.own, questions=instruct,
    )  # fmt: skip
    return Plan(
        asked=_asked(options, base, corpus), threads=torch.get_num_threads(), preparation=preparation, rates=rates,
        adapt=adapted, evaluate=evaluated,
    )  # fmt: skip


class Tale:
    """A tour in the making, told as it goes: the report is rewritten when a stage begins or ends, when the tour is
    interrupted and when it fails."""

    def __init__(self, options: TourOptions, base: Base, corpus: Corpus, plan: Plan, folder: TourFolder) -> None:
        self.facts = story.Facts(options, base.name, base.own, corpus.summary, plan)
        self.folder = folder
        self.stages: dict[str, story.Progress] = {}
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
        self.stages[name] = story.Progress("running")
        self._tell("running")
        artifact = self.folder.stage(name, config=asdict(config), inputs=inputs, seed=self.facts.options.seed)
        found = artifact.finished
        before = saved(artifact.path)
        goes_on = f", going on after {before}" if before else ""
        say(f"{name}: done before" if found else f"{name}: {amount}, about {duration(seconds)}{goes_on}")
        with artifact:
            if not found:
                work(artifact)
        self.stages[name] = story.Progress("done", artifact, reused=found)
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
                log = () if interrupted else self.folder.log(name)
                self.stages[name] = story.Progress(state, error="" if interrupted else str(error), log=log)
                if interrupted:
                    kept = saved(self.folder.unfinished(name))
                    say(f"stopped at {name}" + (f"; {kept} is saved" if kept else ""))
        try:
            self._tell(state)
        except OSError as problem:  # a full disk, often: what stopped the tour is what the user needs to read
            logger.warning("the report could not be written: %s", problem)

    def _tell(self, state: ReportState) -> Report:
        seconds, peak = self.facts.plan.preparation + self.folder.seconds(), self.folder.peak_memory()
        self.report = story.report(self.facts, self.stages, state, seconds, peak)
        write(self.report, self.folder.report)
        return self.report
