"""What the report says of stage 8: a program of many calls on the served model, and what sharing saved.

Reads the stage's artifact; measures nothing.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from maypole.tour.report import Example, Stage, Table, program_picture, seconds_each_way
from maypole.tour.report.words import number, percent
from maypole.tour.serve import FILE, TUNED
from maypole.tour.stages import StageInfo
from maypole.tour.telling import Facts, Progress, common

SHOWN = 3
"""Parts whose text is shown with what was said of it."""


def page(facts: Facts, info: StageInfo, stage: Progress) -> Stage:
    """The stage's part of the report."""
    if stage.artifact is None:
        return Stage(name=info.name, number=info.number, finding=stage.finding, **common(stage))
    found = json.loads((stage.artifact.path / FILE).read_bytes())
    shared, apart = found["shared"], found["apart"]
    plots = [program_picture(found["graph"]),
             seconds_each_way([run["seconds"] for run in shared], [run["seconds"] for run in apart])]  # fmt: skip
    return Stage(
        name=info.name, number=info.number, plots=plots, finding=_finding(facts, found), table=_table(shared, apart),
        examples=_examples(found), repeat_command=_command(facts, found), **common(stage),
    )  # fmt: skip


def _finding(facts: Facts, found: Mapping[str, Any]) -> str:
    shared, apart = found["shared"], found["apart"]
    last, other = shared[-1], apart[-1]
    saved = 1 - last["computed"] / max(other["computed"], 1)
    seconds = [median(run["seconds"] for run in runs) for runs in (shared, apart)]
    same = sum(a == b for a, b in zip(last["said"], other["said"]))
    small = " The base that ships is too small to write a good summary: what counts here is the work." * facts.own
    return (
        f"The tuned model answered over HTTP. One program of {len(last['said'])} calls read {len(found['parts'])} "
        f"held-out texts: {last['computed']:,} prompt tokens were computed and {last['reused']:,} reused, where "
        f"completions that share nothing computed {other['computed']:,} ({percent(saved)} saved), in "
        f"{number(seconds[0], 2)} s against {number(seconds[1], 2)} s. {same} of {len(last['said'])} answers are the "
        f"same both ways.{small}"
    )


def _table(shared: Sequence[Mapping[str, Any]], apart: Sequence[Mapping[str, Any]]) -> Table:
    rows = [(name, runs[-1]["computed"], runs[-1]["reused"], *_ms(runs, "first"), *_ms(runs, "seconds"))
            for name, runs in (("one program", shared), ("the same calls, nothing shared", apart))]  # fmt: skip
    columns = ("", "tokens computed", "reused", "first token (ms)", "from", "to", "whole (ms)", "from", "to")
    runs = "1 run" if len(shared) == 1 else f"{len(shared)} runs"
    caption = f"Median of {runs}, least and most; the first token is the mean of the parts' calls"
    return Table(columns=columns, rows=rows, caption=caption)


def _ms(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[int, int, int]:
    values = [1000 * run[name] for run in runs]
    return round(median(values)), round(min(values)), round(max(values))


def _examples(found: Mapping[str, Any]) -> list[Example]:
    said = found["shared"][-1]["said"]
    parts = [Example(label=f"part {i + 1} of {len(found['parts'])}", prompt=text, after=said[i].strip())
             for i, text in enumerate(found["parts"][:SHOWN])]  # fmt: skip
    whole = "\n".join(text.strip() for text in said[:-1])
    return [*parts, Example(label="the whole, from what was said of the parts", prompt=whole, after=said[-1].strip())]


def _command(facts: Facts, found: Mapping[str, Any]) -> str:
    if found["model"] != TUNED:
        return shlex.join(["maypole", "serve", str(facts.tuned)])
    return shlex.join(["maypole", "serve", str(facts.options.model), "--adapter", str(facts.tuned)])
