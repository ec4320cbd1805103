"""Questions with known answers, answered by an engine and scored item by item. Knows nothing about training.

Scores of every item are kept, so that two models are compared on the same items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import ConfigError, DataError
from maypole.core.statistics import Interval, bootstrap, paired_bootstrap
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.metrics import METRICS

Metric = Callable[[str, Mapping[str, Any]], float]
"""(prediction, row) -> score, larger is better."""

GREEDY = Sampling(max_tokens=64, temperature=0.0)
CHUNK = 256


@dataclass(frozen=True)
class Score:
    """`items` (rows,) and their mean with its interval."""

    items: NDArray[np.float64]
    interval: Interval

    @property
    def mean(self) -> float:
        return self.interval.mean

    def change_from(self, before: "Score", *, seed: int = 0) -> Interval:
        """The paired change of the mean on the same items."""
        return paired_bootstrap(self.items, before.items, seed=seed)


@dataclass(frozen=True)
class TaskScores:
    """Scores by metric, over all rows and by the rows' `task` column where they have one, and what was said."""

    scores: Mapping[str, Score]
    by_task: Mapping[str, Mapping[str, Score]]
    predictions: Sequence[str]


def task_scores(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str] | Mapping[str, Metric] = ("exact_match", "f1"),
    sampling: Sampling = GREEDY,
    adapter: str | None = None,
    seed: int = 0,
    step: Callable[[int], None] | None = None,
) -> TaskScores:
    """Answer every row's `prompt` (or `question`) and compare with its `answers` (or `answer`, or `completion`).

    `metrics` are names of `METRICS`, or functions of (prediction, row) by name, for tasks with a rule of their own.
    `sampling` should ask for one sample; each row draws with seed + its index. Prompts are text or messages.
    """
    scorers = _scorers(metrics)
    if not isinstance(metrics, Mapping):
        check_answers(rows)
    prompts = [prompt_of(row, i) for i, row in enumerate(rows)]
    predictions: list[str] = []
    for a in range(0, len(prompts), CHUNK):
        requests = [
            Request(prompt, replace(sampling, seed=sampling.seed + a + i), adapter)
            for i, prompt in enumerate(prompts[a : a + CHUNK])
        ]
        predictions += [output.text.strip() for output in engine.generate(requests)]
        if step is not None:
            step(len(requests))
    return scored(predictions, rows, scorers, seed=seed)


def scored(
    predictions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] | Mapping[str, Metric],
    *,
    seed: int = 0,
) -> TaskScores:
    """The scores of given predictions, one per row."""
    scorers = _scorers(metrics)
    if len(predictions) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(predictions)} predictions")
    items = {
        name: np.array([float(metric(p, row)) for p, row in zip(predictions, rows)]) for name, metric in scorers.items()
    }
    tasks = [str(row.get("task") or "") for row in rows]
    by_task: dict[str, dict[str, Score]] = {}
    for task in sorted({t for t in tasks if t}):
        of = np.array([t == task for t in tasks])
        by_task[task] = {name: _score(values[of], seed) for name, values in items.items()}
    return TaskScores({name: _score(values, seed) for name, values in items.items()}, by_task, list(predictions))


def check_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """DataError for the first row that has no reference answer: before anything is asked."""
    for i, row in enumerate(rows):
        answers_of(row, i)


def answers_of(row: Mapping[str, Any], index: int | None = None) -> list[str]:
    """The reference answers of a row; DataError, which names the row by its `index`, where it has none."""
    for name in ("answers", "answer", "completion"):
        value = row.get(name)
        if isinstance(value, str):
            return [value]
        if value:
            return [v["content"] if isinstance(v, Mapping) else str(v) for v in value]
    number = None if index is None else index + 1
    raise DataError("no reference answer", row=number, field="answers", expected="a list of strings, or one string")


def _score(values: NDArray[np.float64], seed: int) -> Score:
    return Score(values, bootstrap(values, seed=seed))


def _scorers(metrics: Sequence[str] | Mapping[str, Metric]) -> dict[str, Metric]:
    if isinstance(metrics, Mapping):
        return dict(metrics)
    for name in metrics:
        if name not in METRICS:
            raise ConfigError("metrics", name, METRICS)
    return {name: _against_answers(name) for name in metrics}


def _against_answers(name: str) -> Metric:
    compare = METRICS[name]
    return lambda prediction, row: compare(prediction, answers_of(row))


def prompt_of(row: Mapping[str, Any], index: int) -> Any:
    """What a row asks, text or messages; DataError, which names the row by its `index`, where it asks nothing."""
    prompt = row.get("prompt", row.get("question"))
    if not prompt:
        raise DataError("no prompt", row=index + 1, field="prompt", expected="text or messages")
    return prompt
