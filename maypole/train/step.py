"""Forward passes over packed batches: log-probs under a plan, the loss an objective makes of them, its gradient.

Knows nothing about optimisers, schedules or files.
"""

from collections import Counter
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
from maypole.train.tokens import TokenStore


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
    head = head_of(model)
    options = {"bias": head.bias, "softcap": head.softcap, "scale": head.scale}
    if objective.linear:
        total, logps = weighted_logprobs(hidden, head.weight, batch.target, batch.weights, **options)
        loss = objective(_token_batch(batch, objective, rows, row_index, logps, reference, hidden))
        value = -total
    else:
        logps = token_logprobs(hidden, head.weight, batch.target, **options)
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
    """Log-probs of a frozen model on the scored tokens; computed once per token where `cache` is a file."""

    def __init__(self, lm: LanguageModel, arithmetic: Arithmetic, cached: bool) -> None:
        self.lm, self._cached = lm, cached
        self._arithmetic: Arithmetic = arithmetic
        self._known: np.ndarray | None = None

    def begin(self, store: TokenStore, path: Any) -> None:
        """Forget the last round's values; keep this one's in the file `path`, whose values a resumed run reads."""
        if self._cached:
            mode = "r+" if path.exists() else "w+"
            self._known = np.memmap(path, dtype=np.float32, mode=mode, shape=(max(store.tokens, 1),))

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """(N,) fp32. A stored 0 means "not yet known": log-probs are negative."""
        device = batch.weights.device
        if self._known is not None:
            values = np.asarray(self._known[batch.token])
            if (values != 0).all():
                return torch.from_numpy(values).to(device)
        with torch.no_grad(), self.lm.active() as model:
            training = model.training
            model.eval()
            with packed_execution(model), autocast(self._arithmetic, device):
                hidden = packed_hidden(model, batch.input_ids, batch.plan).index_select(0, batch.source)
                head = head_of(model)
                options = {"bias": head.bias, "softcap": head.softcap, "scale": head.scale}
                logps = token_logprobs(hidden, head.weight, batch.target, **options)
            model.train(training)
        if self._known is not None:
            self._known[batch.token] = logps.cpu().numpy()
        return logps
