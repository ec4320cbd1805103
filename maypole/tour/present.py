"""A tour's artifacts as a report: what each stage found, in sentences, plots and examples. Computes no measure.

Knows nothing about HTML.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.progress import is_quiet
from maypole.tour.adapt import curve
from maypole.tour.report import (
    Changes,
    Example,
    Measure,
    Report,
    Stage,
    Table,
    change_per_measure,
    held_out_loss,
)

NUMBERS = {"adapt": 2, "evaluate": 9}


def say(line: str) -> None:
    """One line for the person who waits."""
    if not is_quiet():
        sys.stderr.write(line + "\n")


@dataclass
class Progress:
    """What is known of a tour so far."""

    model: str
    corpus: str
    command: str
    out: Path
    plan: dict[str, Any] = field(default_factory=dict)
    measures: Sequence[Measure] = ()
    stages: dict[str, Stage] = field(default_factory=lambda: {n: Stage(name=n, number=k) for n, k in NUMBERS.items()})
    current: str = ""

    def start(self, name: str) -> None:
        self.current = name
        self.stages[name] = Stage(name=name, number=NUMBERS[name], state="running")

    def stop(self, state: Any, error: str = "") -> None:
        if self.current and self.stages[self.current].state == "running":
            self.stages[self.current] = Stage(name=self.current, number=NUMBERS[self.current], state=state, error=error)

    def adapted(self, artifact: Artifact) -> None:
        points = curve(artifact.path)
        plots = ()
        finding = "The model was trained on the corpus."
        if len(points) > 1:
            plots = (held_out_loss([t for t, _ in points], [v for _, v in points], points[0][1]),)
            finding = f"Held-out loss went from {points[0][1]:.2f} to {points[-1][1]:.2f} nats a token."
        self.stages["adapt"] = self._done("adapt", artifact, finding, plots=plots)

    def evaluated(self, artifact: Artifact) -> Sequence[Measure]:
        from maypole.tour.run import measures

        items = json.loads((artifact.path / "items.json").read_text())
        self.measures = measures(items)
        changes = [
            Changes(measure=m.name, better=m.better, changes={"adapted": m.interval}, unit=m.unit, digits=m.digits)
            for m in self.measures
            if m.interval is not None
        ]
        table = Table(
            columns=("measure", "before", "after", "n", "verdict"),
            rows=[(m.name, m.before, m.after, m.n, m.verdict) for m in self.measures],
        )
        said = [m.verdict for m in self.measures]
        finding = f"{said.count('better')} of {len(said)} measures are better, {said.count('worse')} worse."
        self.stages["evaluate"] = self._done(
            "evaluate", artifact, finding, plots=(change_per_measure(changes),), table=table, examples=examples(items)
        )
        return self.measures

    def _done(self, name: str, artifact: Artifact, finding: str, **more: Any) -> Stage:
        manifest = artifact.manifest
        facts = [("seed", str(manifest["seed"])), ("key", artifact.key)]
        facts += [(f"input {k}", str(v.get("identity"))) for k, v in manifest["inputs"].items()]
        facts += [(k, str(v)) for k, v in sorted(manifest["versions"].items())]
        facts += [
            ("cpu seconds", str(manifest["cpu_seconds"])),
            ("peak memory", f"{manifest['peak_rss_bytes'] / 1e9:.2f} GB"),
        ]
        return Stage(
            name=name, number=NUMBERS[name], state="done", seconds=manifest["wall_seconds"], finding=finding,
            repeat_command=self.command, provenance=facts, **more,
        )  # fmt: skip

    def report(self, state: Any, date: str, seconds: float, peak: int) -> Report:
        return Report(
            title="maypole tour", model=Path(self.model).name, corpus=self.corpus, date=date, seconds=seconds,
            peak_rss=peak, state=state, measures=self.measures, stages=tuple(self.stages.values()),
            resume_command=self.command,
        )  # fmt: skip


def examples(items: dict[str, Any]) -> list[Example]:
    """Four questions at random, and two each where the answer became right or wrong; so labelled."""
    if not items["groups"]:
        return []
    before, after = items["before"], items["after"]
    change = [a - b for a, b in zip(after["right"], before["right"])]
    order = list(range(len(change)))
    random.Random(0).shuffle(order)
    chosen = [(i, "random, seed 0") for i in order[:4]]
    rest = order[4:]
    chosen += [(i, "became right") for i in rest if change[i] > 0][:2]
    chosen += [(i, "became wrong") for i in rest if change[i] < 0][:2]
    made: list[Example] = []
    for i, label in chosen:
        prompt = items["prompts"][i]
        text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
        made.append(
            Example(
                label=f"{label}: {items['groups'][i]}",
                prompt=f"{text}\n(wanted: {items['expected'][i]})",
                before=before["replies"][i],
                after=after["replies"][i],
            )  # fmt: skip
        )
    return made
