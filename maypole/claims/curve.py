"""Numbers along a training run, so that a claim can say how many steps something took. Knows no experiment."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.claims.arm import once

Points = Mapping[int, Mapping[str, float]]
"""What was measured, by the step after which it was."""


class Curve(TrainerCallback):
    """For `fit`'s callbacks: what `measure` says after every `every` steps, in `points` by step."""

    def __init__(self, every: int, measure: Callable[[], Mapping[str, float]]) -> None:
        self.every, self.measure = every, measure
        self.points: dict[int, Mapping[str, float]] = {}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.points[state.global_step] = self.measure()


def points_once(folder: Path, measure: Callable[[], Points]) -> Points:
    """`once`, for an arm that is measured along the way."""
    return {int(step): point for step, point in once(folder, measure).items()}


def at_its_end(points: Points, **more: float) -> Points:
    """`points`, with `more` that was measured when the run was over."""
    last = max(points)
    return {**points, last: {**points[last], **more}}


def steps_until(points: Points, name: str, level: float) -> float:
    """Steps after which `name` first reached `level`, between two points by a straight line; where it never did,
    the last step: it took more than that."""
    steps, values = list(points), [point[name] for point in points.values()]
    for i, value in enumerate(values):
        if value >= level:
            return float(np.interp(level, values[i - 1 : i + 1], steps[i - 1 : i + 1])) if i else float(steps[0])
    return float(steps[-1])
