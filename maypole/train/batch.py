"""Rows of a token store become one packed batch: tokens, who sees whom, which slot predicts which token.

Knows nothing about models or losses.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from maypole.models.packing import PackedPlan, pack_rows
from maypole.train.tokens import TokenStore

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """T packed tokens, N of them scored.

    input_ids: (T,); slot: (N,) where the scored tokens stand; source: (N,) slot whose hidden state predicts;
    target: (N,) token; weights: (N,);
    token: (N,) index into the store's tokens; segment: (N,) -> S; names: S; row: (S,) -> R; rows: (R,) row numbers.
    """

    input_ids: torch.Tensor
    plan: PackedPlan
    slot: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor
    token: np.ndarray
    segment: torch.Tensor
    names: list[str]
    row: torch.Tensor
    rows: np.ndarray

    def to(self, device: torch.device) -> "PackedBatch":
        names = ("input_ids", "plan", "slot", "source", "target", "weights", "segment", "row")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(store: TokenStore, rows: np.ndarray, device: torch.device = CPU) -> PackedBatch:
    """The batch of the store's `rows`, in that order. A child's first token is predicted by its parent's last slot."""
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    source: list[np.ndarray] = []
    segment: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    names: list[str] = []
    row_of: list[int] = []
    slot = 0
    for r, number in enumerate(rows):
        first, last = int(store.row_start[number]), int(store.row_start[number + 1])
        parents = np.asarray(store.segment_parent[first:last])
        has_children = np.zeros(last - first, dtype=bool)
        has_children[parents[parents >= 0]] = True
        path: list[np.ndarray] = []
        for s in range(first, last):
            begin, end = int(store.segment_start[s]), int(store.segment_start[s + 1])
            own = np.arange(slot, slot + end - begin)
            parent = int(parents[s - first])
            before = path[parent] if parent >= 0 else own[:0]
            path.append(np.concatenate([before, own]) if len(before) else own)
            if len(own):
                ids.append(store.ids[begin:end])
                weights.append(store.weights[begin:end])
                tokens.append(np.arange(begin, end))
                source.append(np.concatenate([before[-1:] if len(before) else [-1], own[:-1]]))
                segment.append(np.full(len(own), len(names)))
            if not has_children[s - first] and len(path[-1]):
                paths.append(path[-1])
            names.append(store.names[store.segment_name[s]])
            row_of.append(r)
            slot += len(own)
    flat_weights = np.concatenate(weights)
    scored = np.nonzero(flat_weights)[0]
    sources = np.concatenate(source).astype(np.int64)
    read = np.concatenate([sources[scored], scored])
    flat_ids = np.concatenate(ids).astype(np.int64)
    batch = PackedBatch(
        input_ids=torch.from_numpy(flat_ids),
        plan=pack_rows(paths, slot, whole=device.type != "cpu", read=read[read >= 0]),
        slot=torch.from_numpy(scored.astype(np.int64)),
        source=torch.from_numpy(sources[scored]),
        target=torch.from_numpy(flat_ids[scored]),
        weights=torch.from_numpy(flat_weights[scored].copy()),
        token=np.concatenate(tokens)[scored],
        segment=torch.from_numpy(np.concatenate(segment)[scored].astype(np.int64)),
        names=names,
        row=torch.tensor(row_of),
        rows=np.asarray(rows),
    )
    return batch.to(device)
