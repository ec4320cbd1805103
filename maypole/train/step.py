"""Forward passes over packed batches: log-probs under a plan, the loss an objective makes of them, its gradient.

Knows nothing about optimisers, schedules or files.
"""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from maypole.models.attention import packed_execution
from maypole.models.forward import packed_hidden
from maypole.models.head import head_of, token_logprobs, weighted_logprobs
from maypole.models.language_model import LanguageModel
from maypole.train.batch import PackedBatch
from maypole.train.objective import Objective, TokenBatch
from maypole.train.precision import Arithmetic, autocast
from maypole.train.source import Work


def loss_of(
    model: nn.Module,
    batch: PackedBatch,
    objective: Objective,
    rows: Dataset,
    row_index: np.ndarray,
    reference: torch.Tensor | None,
    metrics: Counter[str],
) -> torch.Tensor:
    """The objective's summed loss over one batch, differentiable; its metrics are added to `metrics`.

    Call it inside `packed_execution`. Where the objective is linear the head makes the gradient on its way.
    """
    hidden = packed_hidden(model, batch.input_ids, batch.plan).index_select(0, batch.source)
    if objective.linear:
        head = head_of(model)
        total, logps = weighted_logprobs(
            hidden, head.weight, batch.target, batch.weights,
            bias=head.bias, softcap=head.softcap, scale=head.scale,
        )  # fmt: skip
        loss = objective(_token_batch(batch, objective, rows, row_index, logps, reference, hidden))
        value = -total
    else:
        logps = _logprobs(model, hidden, batch)
        loss = objective(_token_batch(batch, objective, rows, row_index, logps, reference, hidden))
        value = loss.sum
    for name, number in loss.metrics.items():
        metrics[name] += float(number)  # type: ignore[assignment]
    return value


def _token_batch(
    batch: PackedBatch,
    objective: Objective,
    rows: Dataset,
    row_index: np.ndarray,
    logps: torch.Tensor,
    reference: torch.Tensor | None,
    hidden: torch.Tensor,
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
        columns=columns,
    )


class ReferenceLogps:
    """Log-probs of a frozen model on the scored tokens; with a `folder` each is computed once and kept there."""

    def __init__(self, lm: LanguageModel, arithmetic: Arithmetic, folder: Path | None) -> None:
        self.lm, self._folder = lm, folder
        self._arithmetic: Arithmetic = arithmetic
        self._known: dict[str, np.memmap] = {}

    def __call__(self, batch: PackedBatch, work: Work) -> torch.Tensor:
        """(N,) fp32, for a batch of `work`."""
        known = None if self._folder is None else self._file(self._folder, work)
        if known is not None:
            values = np.array(known[batch.token])
            if not np.isnan(values).any():
                return torch.from_numpy(values).to(batch.weights.device)
        logps = self._compute(batch)
        if known is not None:
            known[batch.token] = logps.cpu().numpy()
        return logps

    @torch.no_grad()
    def _compute(self, batch: PackedBatch) -> torch.Tensor:
        with self.lm.active() as model:
            training = model.training
            model.eval()
            with packed_execution(model), autocast(self._arithmetic, batch.weights.device):
                hidden = packed_hidden(model, batch.input_ids, batch.plan).index_select(0, batch.source)
                logps = _logprobs(model, hidden, batch)
            model.train(training)
        return logps

    def _file(self, folder: Path, work: Work) -> np.memmap:
        """(T,) of the store's tokens, NaN where not yet known; what an earlier run computed is read again."""
        if work.name not in self._known:
            path, shape = folder / f"reference-{work.name}.f32", (max(work.store.tokens, 1),)
            if not path.is_file():
                part = path.with_suffix(f".{os.getpid()}.tmp")
                np.full(shape, np.nan, dtype=np.float32).tofile(part)
                with suppress(FileExistsError):  # another process of this run was faster; what it knows stays
                    os.link(part, path)
                part.unlink()
            self._known[work.name] = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        return self._known[work.name]


def _logprobs(model: nn.Module, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    head = head_of(model)
    return token_logprobs(hidden, head.weight, batch.target, bias=head.bias, softcap=head.softcap, scale=head.scale)
