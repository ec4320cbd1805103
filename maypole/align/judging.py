"""A judge's word on every candidate: scores from any judge, and a matrix of probabilities where one is wanted.

Equal candidates are asked about once and are equal: a judge that is not sure of itself makes no difference between
them. Knows nothing about policies or files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.align.method import JudgeKind
from maypole.align.preference_matrix import from_scores
from maypole.core.judge import OnJudgeError, Preference, Reward, call_reward, matrix, symmetric
from maypole.evaluate.judges import is_preference

Judge = Reward | Preference


def judged(
    samples: Sequence[dict[str, Any]],
    judge: Judge,
    wanted: JudgeKind,
    columns: Sequence[str],
    *,
    both_orders: bool = True,
    on_judge_error: OnJudgeError = "stop",
) -> list[dict[str, Any]]:
    """`samples` with scores and, where a preference judged or is `wanted`, probabilities.

    columns: further columns of the samples that the judge may want to see. A preference is asked in both orders unless
    told not to. Both are None for a prompt of which the judge would not judge all candidates. JudgeError names rows of
    the data.
    """
    if not samples:
        return []
    known: Any = judge
    if is_preference(judge):
        asked = symmetric(known) if both_orders else known
        probabilities = _compared(samples, asked, columns, on_judge_error)
        scores = probabilities.mean(axis=2)
    else:
        scores = _scored(samples, judge, columns, on_judge_error)
        probabilities = None
        if wanted == "preference":
            probabilities = from_scores(scores)
    found: list[dict[str, Any]] = []
    for i, sample in enumerate(samples):
        whole = not np.isnan(scores[i]).any()
        table = probabilities[i].tolist() if whole and probabilities is not None else None
        found.append({**sample, "scores": scores[i].tolist() if whole else None, "probabilities": table})
    return found


def _scored(
    samples: Sequence[dict[str, Any]], judge: Any, columns: Sequence[str], on_judge_error: OnJudgeError
) -> NDArray[np.float64]:
    """(n, k), NaN where there is no opinion."""
    firsts = [_firsts(sample["completion_ids"]) for sample in samples]
    asked = [(sample, i) for sample, first in zip(samples, firsts) for i in sorted(set(first))]
    more: dict[str, list[Any]] = {name: [sample[name] for sample, _ in asked] for name in columns}
    more["completion_ids"] = [sample["completion_ids"][i] for sample, i in asked]
    answers = call_reward(
        judge,
        [sample["prompt"] for sample, _ in asked],
        [sample["completions"][i] for sample, i in asked],
        more,
        on_judge_error=on_judge_error,
        rows=[sample["row"] + 1 for sample, _ in asked],
    ).array
    known = {(id(sample), i): score for (sample, i), score in zip(asked, answers)}
    return np.array([[known[id(sample), i] for i in first] for sample, first in zip(samples, firsts)])


def _compared(
    samples: Sequence[dict[str, Any]], judge: Any, columns: Sequence[str], on_judge_error: OnJudgeError
) -> NDArray[np.float64]:
    """(n, k, k), NaN where there is no opinion."""
    found = matrix(
        judge,
        [sample["prompt"] for sample in samples],
        [sample["completions"] for sample in samples],
        {name: [sample[name] for sample in samples] for name in columns},
        on_judge_error=on_judge_error,
        rows=[sample["row"] + 1 for sample in samples],
    )
    for table, sample in zip(found, samples):
        first = np.array(_firsts(sample["completion_ids"]))
        table[:] = table[np.ix_(first, first)]
        table[first[:, None] == first[None, :]] = 0.5
    return found


def _firsts(ids: Sequence[Sequence[int]]) -> list[int]:
    """Of each candidate the place of the first one equal to it."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(one), i) for i, one in enumerate(ids)]
