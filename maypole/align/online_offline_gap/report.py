"""What the runs say: a table of every measurement, the arms beside each other, and the same as a page for people.

Knows nothing about how runs are made.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maypole.align.online_offline_gap.config import EXPERIMENTS, GapConfig
from maypole.align.online_offline_gap.curves import Point, compared, edges, envelope, runs
from maypole.align.online_offline_gap.page import page
from maypole.align.online_offline_gap.picture import picture
from maypole.core.artifact import Artifact, command_line
from maypole.core.atomic import whole_file, write_atomic

TABLE, REPORT, PICTURE, PAGE = "table.parquet", "report.json", "gap.svg", "report.html"


def report(out: Artifact, config: GapConfig, points: Sequence[Point], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write all of it into `out`; returns the numbers for its manifest. `facts` go into the report as they are."""
    document = {**describe(config, points), **facts}
    with whole_file(out.path / TABLE) as part:
        pq.write_table(pa.Table.from_pylist([dict(point) for point in points]), part)
    write_atomic(out.path / REPORT, json.dumps(document, indent=2) + "\n")
    drawn = picture(document["comparisons"], points)
    write_atomic(out.path / PICTURE, drawn)
    write_atomic(out.path / PAGE, page(document, drawn, out.out.name, command_line(out.manifest)))
    found = {f"{_name(one)}/best_difference": one["best_difference"] for one in document["comparisons"]}
    return {"runs": len(document["runs"]), "proxy_accuracy": facts["proxy_accuracy"], **found}


def describe(config: GapConfig, points: Sequence[Point]) -> dict[str, Any]:
    """What follows from the measurements alone."""

    def of(arm: str, size: str) -> list[Point]:
        return [point for point in points if point["arm"] == arm and point["size"] == size]

    every = list(dict.fromkeys(point["size"] for point in points))
    comparisons = [
        {"experiment": name, "size": size, "arm": arm, "against": other, **compared(of(arm, size), of(other, size))}
        for name in config.experiments
        for size in (every if name == "scale" else every[:1])
        for arm, other in EXPERIMENTS[name]
    ]
    envelopes = [
        {"arm": arm, "size": size, "kl_from": edges(k)[0], "kl_to": edges(k)[1],
         **{name: best[name] for name in ("cell", "step", "kl", "win_rate")}}
        for size in every
        for arm in dict.fromkeys(point["arm"] for point in points if point["size"] == size)
        for k, best in envelope(of(arm, size)).items()
    ]  # fmt: skip
    return {
        "experiments": list(config.experiments),
        "steps": config.steps,
        "loss": config.loss,
        "comparisons": comparisons,
        "envelopes": envelopes,
        "runs": runs(points),
    }


def _name(comparison: Mapping[str, Any]) -> str:
    size = f" {comparison['size']}" if comparison["size"] else ""
    return f"{comparison['experiment']}{size}: {comparison['arm']} - {comparison['against']}"
