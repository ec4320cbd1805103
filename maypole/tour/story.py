"""What a tour's artifacts have to say: each stage's finding in a sentence, its plots, table, examples and origin.

Reads artifacts; computes no measure of its own and knows nothing about HTML.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from maypole.tour import align_page, curate_page, serve_page
from maypole.tour.adapt import curve
from maypole.tour.evaluate import HELD_OUT, ITEMS, choose
from maypole.tour.measures import measures, skills
from maypole.tour.options import TourOptions
from maypole.tour.report import (
    Changes,
    Example,
    Measure,
    Plot,
    Report,
    Stage,
    Table,
    accuracy_by_skill,
    change_per_measure,
    held_out_loss,
)
from maypole.tour.report.model import ReportState
from maypole.tour.report.words import bounds, number
from maypole.tour.rows import REPLAY_SHARE
from maypole.tour.stages import STAGES, StageInfo
from maypole.tour.telling import Facts, Progress, common

Pages = dict[str, tuple[Any, Stage]]
"""Name of a stage -> what its page was made of, and the page."""


def report(
    facts: Facts, stages: Mapping[str, Progress], state: ReportState, seconds: float, peak_memory: int, pages: Pages
) -> Report:
    """The report of a tour whose `stages` (by name) have come so far; `pages` are those made before, and are not drawn
    again where nothing has changed."""
    last = stages.get("evaluate", Progress("not yet")).artifact
    items, found = (None, []) if last is None else _measured(last.path, last.key)
    told = {
        "curate": lambda facts, info, stage, items, found: curate_page.page(facts, info, stage),
        "adapt": _adapt,
        "align": lambda facts, info, stage, items, found: align_page.page(facts, info, stage),
        "serve": lambda facts, info, stage, items, found: serve_page.page(facts, info, stage),
        "evaluate": _evaluate,
    }

    def page(info: StageInfo) -> Stage:
        if not info.built:
            return Stage(name=info.name, number=info.number, state="absent", finding=info.does)
        stage = stages.get(info.name, Progress("not yet"))
        if info.name not in pages or pages[info.name][0] != (stage, last):
            pages[info.name] = (stage, last), told[info.name](facts, info, stage, items, found)
        return pages[info.name][1]

    return Report(
        title="maypole tour", model=facts.model, corpus=facts.corpus, date=_date(stages), seconds=seconds,
        peak_rss=peak_memory, state=state, measures=found, stages=[page(info) for info in STAGES],
        resume_command=facts.options.command,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _measured(path: Path, key: str) -> tuple[dict[str, Any], list[Measure]]:
    """The items of a finished evaluation and their measures, whose intervals take a second or two."""
    items = json.loads((path / ITEMS).read_bytes())
    return items, measures(items)


def _date(stages: Mapping[str, Progress]) -> str:
    """The day of the last stage that is done, else today."""
    days = [s.artifact.manifest["finished_at"][:10] for s in stages.values() if s.artifact is not None]
    return max(days, default=datetime.now(UTC).date().isoformat())


def _adapt(
    facts: Facts, info: StageInfo, stage: Progress, items: dict[str, Any] | None, found: Sequence[Measure]
) -> Stage:
    plots: list[Plot] = []
    finding, table = stage.finding, None
    examples: list[Example] = []
    if stage.artifact is not None:
        points = curve(stage.artifact.path)
        plots.append(held_out_loss([t for t, _ in points[1:]], [v for _, v in points[1:]], points[0][1]))
        finding = _learnt(facts, points, stage.artifact.manifest["metrics"])
    if items:
        by_skill = skills(items)
        if by_skill:
            before, after, _ = zip(*by_skill.values())
            plots.append(accuracy_by_skill(list(by_skill), before, {"tuned": after}))
        table = _table(found)
        examples = [_continued(sample) for sample in items["samples"]]
    return Stage(
        name=info.name, number=info.number, plots=plots, finding=finding, table=table, examples=examples,
        repeat_command=facts.options.command if stage.state == "done" else "",
        repeat_python=_python(facts.options) if stage.state == "done" else "", **common(stage),
    )  # fmt: skip


def _evaluate(
    facts: Facts, info: StageInfo, stage: Progress, items: dict[str, Any] | None, found: Sequence[Measure]
) -> Stage:
    plots: list[Plot] = []
    finding, table, command = stage.finding, None, ""
    examples: list[Example] = []
    if items:
        tested = [m for m in found if m.interval is not None]
        plots.append(change_per_measure([_changes(m) for m in tested]))
        finding = _changed(found)
        table = Table(
            columns=("measure", "base", "tuned", "change", "95 % CI", "n", "verdict"),
            rows=[(m.name, *_sides(m), round(m.change, 3), bounds(m.interval, 3), m.n, m.verdict) for m in found],
            caption="All measures, both models",
        )
        examples = _answers(items, facts.options.seed)
        out = facts.options.out
        command = shlex.join(
            ["maypole", "evaluate", "perplexity", "--model", str(facts.tuned),
             "--data", str(out / info.directory / HELD_OUT), "--max-length", str(items["max_length"])]
        )  # fmt: skip
    return Stage(
        name=info.name, number=info.number, plots=plots, finding=finding, table=table, examples=examples,
        repeat_command=command, **common(stage),
    )  # fmt: skip


def _learnt(facts: Facts, points: Sequence[tuple[int, float]], metrics: Mapping[str, Any]) -> str:
    way = "fell" if points[-1][1] < points[0][1] else "did not fall"
    parts = [
        f"Held-out loss {way}: {points[0][1]:.2f} (base) to {points[-1][1]:.2f} nats per token, "
        f"after {metrics['corpus_tokens']:,} training tokens in {metrics['corpus_steps']:,} steps"
    ]
    instructed = facts.plan.adapt.instruction_rows
    if instructed:
        parts.append(f"then {instructed:,} instructions in {metrics['instructions_steps']:,} steps")
    what = "All weights were trained" if facts.own else "A LoRA was trained"
    if facts.own and instructed:
        kept = f"; {100 * REPLAY_SHARE:.0f} % of the tokens were the base's own, against forgetting"
    else:
        kept = ", with nothing against forgetting"
    return f"{', '.join(parts)}. {what}{kept}."


def _changed(found: Sequence[Measure]) -> str:
    """ "Better: new tasks (0.00 to 0.93). Worse: old tasks (1.00 to 0.95)."."""
    said: dict[str, list[str]] = {}
    for m in found:
        sides = f"{number(m.before, m.digits)} to {number(m.after, m.digits)}"
        said.setdefault(m.verdict, []).append(f"{m.name} ({sides})")
    order = ("better", "worse", "no clear change", "not tested")
    return " ".join(f"{word.capitalize()}: {', '.join(said[word])}." for word in order if word in said)


def _table(found: Sequence[Measure]) -> Table:
    caption = "Measured on the model that the tour ended with, so after stage 3"
    return Table(columns=("measure", "base", "tuned"), rows=[(m.name, *_sides(m)) for m in found], caption=caption)


def _sides(measure: Measure) -> tuple[float, float]:
    return round(measure.before, 3), round(measure.after, 3)


def _changes(measure: Measure) -> Changes:
    assert measure.interval is not None
    return Changes(
        measure=measure.name, better=measure.better, changes={"tuned": measure.interval}, unit=measure.unit,
        digits=measure.digits,
    )  # fmt: skip


def _continued(sample: Mapping[str, Any]) -> Example:
    way = "less" if sample["gain"] > 0 else "more"
    label = f"held-out text, {sample['label']}: {abs(sample['gain']):.2f} nats per token {way} surprised"
    return Example(label=label, prompt=sample["opening"], before=sample["before"], after=sample["after"])


def _answers(items: Mapping[str, Any], seed: int) -> list[Example]:
    """Questions at random, and where an answer became right or wrong."""
    before, after = items["before"], items["after"]
    gains = [a - b for a, b in zip(after["right"], before["right"], strict=True)]
    made: list[Example] = []
    for shown in choose(gains, seed):
        question = items["questions"][shown.item]
        prompt = question["prompt"]
        text = prompt.strip() if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
        made.append(
            Example(
                label=f"{question['measure']}, {_chosen(shown.label, before, after, shown.item)}",
                prompt=f"{text}\n(right: {question['expected']})",
                before=before["replies"][shown.item].strip(),
                after=after["replies"][shown.item].strip(),
            )
        )
    return made


def _chosen(label: str, before: Mapping[str, Any], after: Mapping[str, Any], item: int) -> str:
    words = ["right" if side["right"][item] else "wrong" for side in (before, after)]
    return f"{label}: {words[0]} before, {words[1]} after"


def _python(options: TourOptions) -> str:
    given = [
        f"{field.name}={getattr(options, field.name)!r}".replace("PosixPath(", "Path(")
        for field in fields(options)
        if getattr(options, field.name) != field.default
    ]
    imports = "from pathlib import Path\n\n" if any("Path(" in text for text in given) else ""
    return f"{imports}from maypole.tour import TourOptions, run_tour\n\nrun_tour(TourOptions({', '.join(given)}))"
