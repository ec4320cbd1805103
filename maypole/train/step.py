"""Forward passes over packed batches: log-probs under a plan, the loss an objective makes of them, its gradient.

Knows nothing about optimisers, schedules or files.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from maypole.models.forward import packed_hidden
from maypole.models.head import head_of, token_logprobs, weighted_logprobs
from maypole.models.score_head import score_states
from maypole.train.batch import PackedBatch
from maypole.train.objective import Loss, Objective, TokenBatch, WithBaseline

COUNT = "count of "
"""Before the name of a metric: on how many rows it was counted."""


def loss_of(
    model: nn.Module,
    batch: PackedBatch,
    objective: Objective,
    rows: Dataset,
    row_index: np.ndarray,
    reference: torch.Tensor | None,
    metrics: Counter[str],
    baseline: float | None = None,
) -> torch.Tensor:
    """The objective's summed loss over one batch, differentiable; its metrics are added to `metrics`.

    Call it inside `packed_execution`. Where the objective is linear the head makes the gradient on its way.
    """
    reads_scores = "scores" in objective.needs
    states = packed_hidden(model, batch.input_ids, batch.plan)
    hidden = states.index_select(0, batch.slot if reads_scores else batch.source)

    def loss_from(logps: torch.Tensor, scores: torch.Tensor | None = None) -> Loss:
        return objective(_token_batch(batch, objective, rows, row_index, logps, reference, hidden, scores, baseline))

    if reads_scores:
        scores = score_states(model, hidden).squeeze(1)
        loss = loss_from(scores.new_empty(0), scores)
        value = loss.sum
    elif objective.linear:
        head = head_of(model)
        total, logps = weighted_logprobs(
            hidden, head.weight, batch.target, batch.weights,
            bias=head.bias, softcap=head.softcap, scale=head.scale,
        )  # fmt: skip
        loss = loss_from(logps)
        value = -total
    else:
        loss = loss_from(logprobs_of(model, hidden, batch))
        value = loss.sum
    for name, number in loss.metrics.items():
        if isinstance(number, tuple):
            number, count = number
            metrics[COUNT + name] += float(count)  # type: ignore[assignment]
        metrics[name] += float(number)  # type: ignore[assignment]
    return value


def baseline_of(
    model: nn.Module,
    batch: PackedBatch,
    objective: WithBaseline,
    rows: Dataset,
    row_index: np.ndarray,
    reference: torch.Tensor | None,
    metrics: Counter[str],
) -> torch.Tensor:
    """What the objective's baseline sums up over one batch."""
    hidden = packed_hidden(model, batch.input_ids, batch.plan).index_select(0, batch.source)
    logps = logprobs_of(model, hidden, batch)
    return objective.baseline(_token_batch(batch, objective, rows, row_index, logps, reference, hidden, None, None))


def means(sums: Mapping[str, float], denominator: float) -> dict[str, float]:
    """Metrics from their sums: over all rows or tokens, or over as many as they were counted on, if there are any."""
    over = {name: sums.get(COUNT + name, denominator) for name in sums if not name.startswith(COUNT)}
    return {name: sums[name] / count for name, count in over.items() if count}


def _token_batch(
    batch: PackedBatch,
    objective: Objective,
    rows: Dataset,
    row_index: np.ndarray,
    logps: torch.Tensor,
    reference: torch.Tensor | None,
    hidden: torch.Tensor,
    scores: torch.Tensor | None,
    baseline: float | None,
) -> TokenBatch:
    columns: dict[str, Any] = {}
    if objective.columns:
        taken: dict[str, list] = rows.select_columns(list(objective.columns))[row_index.tolist()]
        for name, values in taken.items():
            numbers = all(isinstance(v, int | float) for v in values)
            columns[name] = torch.tensor(values, device=logps.device) if numbers else values
    return TokenBatch(
        logps=logps,
        weights=batch.weights,
        segment=batch.segment,
        names=batch.names,
        row=batch.row,
        rows=len(batch.rows),
        reference=reference,
        hidden=hidden if "hidden" in objective.needs else None,
        scores=scores,
        baseline=baseline,
        columns=columns,
    )


def logprobs_of(model: nn.Module, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """log p of each scored token of `batch` by the states that predict it: (N,) fp32, differentiable."""
    head = head_of(model)
    return token_logprobs(hidden, head.weight, batch.target, bias=head.bias, softcap=head.softcap, scale=head.scale)
