"""One vector per text, and the scores of a classifier's head: packed for decoders, padded for encoders.

Knows nothing about generation.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from maypole.engine.adapters import Adapter
from maypole.engine.prefix_tree import Ids, neighbours
from maypole.engine.runner import Runner

Pooling = Literal["last", "mean", "cls"]
Each = Callable[[Callable[[], None]], None]


def embed(
    texts: Sequence[Ids],
    runner: Runner,
    adapter: Adapter | None,
    *,
    pooling: Pooling,
    layer: int,
    normalize: bool,
    max_batch_tokens: int,
    each: Each,
) -> np.ndarray:
    """(n, d) in fp32. `layer` counts as transformers' hidden_states, -1 the last one, after the final norm."""
    pooled: list[np.ndarray | None] = [None] * len(texts)
    for batch in _by_length(texts, max_batch_tokens):

        def run(batch: list[int] = batch) -> None:
            rows = [texts[i] for i in batch]
            hidden = _packed(rows, runner, adapter, layer) if runner.packed else _padded(rows, runner, layer)
            vectors = torch.stack([_pool(states.float(), pooling, normalize) for states in hidden]).cpu().numpy()
            for i, vector in zip(batch, vectors):
                pooled[i] = vector

        each(run)
    found = [p for p in pooled if p is not None]
    return np.stack(found) if found else np.zeros((0, 0), dtype=np.float32)


def classify(
    texts: Sequence[Ids], adapters: Sequence[Adapter | None], runner: Runner, max_batch_tokens: int, each: Each
) -> np.ndarray:
    """(n, num_labels) in fp32 of a sequence classifier; a decoder's head reads the last token.

    What texts of a decoder begin with in common is computed once.
    """
    scores: list[np.ndarray | None] = [None] * len(texts)
    packed = neighbours(texts, [id(a) for a in adapters], max_batch_tokens) if runner.packed else None
    for batch in _by_length(texts, max_batch_tokens) if packed is None else packed:

        def run(batch: list[int] = batch) -> None:
            if runner.packed:
                theirs = [adapters[i] for i in batch]
                tree = runner.tree([texts[i] for i in batch], theirs)
                last = runner.read(tree, theirs, wanted=np.array([path[-1] for path in tree.paths]))
                found = [_head(state, runner, adapter) for state, adapter in zip(last, theirs)]
            else:
                with torch.no_grad():
                    found = list(runner.module(**_inputs([texts[i] for i in batch], runner)).logits)
            for i, row in zip(batch, torch.stack(found).float().cpu().numpy()):
                scores[i] = row

        each(run)
    kept = [s for s in scores if s is not None]
    return np.stack(kept) if kept else np.zeros((0, 0), dtype=np.float32)


def _head(state: torch.Tensor, runner: Runner, adapter: Adapter | None) -> torch.Tensor:
    own = None if adapter is None else adapter.heads.get("score.weight")
    weight = runner.module.score.weight if own is None else own
    with torch.no_grad():  # in fp32: scores that are about equal would tie in bf16
        return F.linear(state.float(), weight.float())


def _packed(rows: Sequence[Ids], runner: Runner, adapter: Adapter | None, layer: int) -> list[torch.Tensor]:
    adapters = [adapter] * len(rows)
    tree = runner.tree(rows, adapters)
    hidden = runner.read(tree, adapters, layer)
    return [hidden[torch.from_numpy(path).to(hidden.device)] for path in tree.paths]


@torch.no_grad()
def _padded(rows: Sequence[Ids], runner: Runner, layer: int) -> list[torch.Tensor]:
    out = runner.module(**_inputs(rows, runner), output_hidden_states=layer != -1)
    hidden = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    return [hidden[i, : len(row)] for i, row in enumerate(rows)]


def _inputs(rows: Sequence[Ids], runner: Runner) -> dict[str, Any]:
    pad = getattr(runner.module.config, "pad_token_id", None) or 0
    longest = max(len(r) for r in rows)
    ids, mask = np.full((len(rows), longest), pad, dtype=np.int64), np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {
        "input_ids": torch.from_numpy(ids).to(runner.device),
        "attention_mask": torch.from_numpy(mask).to(runner.device),
    }


def _pool(states: torch.Tensor, pooling: Pooling, normalize: bool) -> torch.Tensor:
    """(tokens, d) -> (d,)."""
    vector = {"last": states[-1], "cls": states[0]}.get(pooling)
    vector = states.mean(dim=0) if vector is None else vector
    return F.normalize(vector, dim=0) if normalize else vector


def _by_length(texts: Sequence[Ids], limit: int) -> list[list[int]]:
    """Batches of similar length whose padded size stays within `limit` tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if batches and (len(batches[-1]) + 1) * len(texts[i]) <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
