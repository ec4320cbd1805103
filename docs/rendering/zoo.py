"""What is stored about the zoo under docs/results/zoo as tables: figures of checkpoints, runs of experiments."""

import json
from pathlib import Path

from maypole.village.figures import Figures
from maypole.village.figures import table as side_by_side
from rendering.tables import table

ZOO = Path(__file__).parent.parent / "results" / "zoo"


def zoo() -> str:
    """The figures of every checkpoint, side by side."""
    return side_by_side([Figures.read(file) for file in ZOO.glob("*.json")])


def runs(name: str) -> str:
    """The runs of an experiment, a line each: runs/NAME.json is a list of mappings with equal keys."""
    found = json.loads((ZOO / "runs" / f"{name}.json").read_text())
    numeric = [key for key, value in found[0].items() if isinstance(value, int | float)]
    return table(list(found[0]), [[_shown(value) for value in run.values()] for run in found], right=numeric)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
