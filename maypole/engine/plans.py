"""Attention of whole sequences at once: what they begin with in common is computed once, and nothing is kept.

Knows nothing about requests.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from maypole.engine.prefix_tree import PrefixTree
from maypole.models.packing import causal_attention, fused_attention
from maypole.models.plan import AttentionSpec


@dataclass(slots=True)
class Probe:
    """Attention to oneself that notes, layer by layer, what it is asked for and the shape of what a cache has to hold.

    `shapes` are (kv_heads, d_key, d_value).
    """

    specs: dict[int, AttentionSpec] = field(default_factory=dict)
    shapes: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        self.specs[spec.layer] = spec
        self.shapes[spec.layer] = (key.shape[1], key.shape[2], value.shape[2])
        return causal_attention(query[None], key[None], value[None], spec)[0]


@dataclass(slots=True)
class _Rows:
    """Rows of similar length. queries: (n, Q), keys: (n, K) slots; offsets: (n, Q) positions; own: (n, Q) not padding.

    `causal` rows hold whole sequences (Q = K), the others continue a shared beginning.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    offsets: torch.Tensor
    causal: bool
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(n, 1, Q, K) additive: position p sees p and what is before it, inside the window."""
        if window not in self.masks:
            j = torch.arange(self.keys.shape[1], device=self.keys.device)
            gap = self.offsets[:, :, None] - j
            seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.masks[window] = bias.unsqueeze(1)
        return self.masks[window]


@dataclass(slots=True)
class TreePlan:
    """Every slot of a prefix tree attends to its path, computed once."""

    rows: list[_Rows]
    inverse: torch.Tensor
    positions: torch.Tensor

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (T, heads, d); key, value: (T, kv_heads, d) -> (T, heads, d)."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        outs: list[torch.Tensor] = []
        for rows in self.rows:
            q, k, v = query[rows.queries], key[rows.keys], value[rows.keys]
            out = causal_attention(q, k, v, spec) if rows.causal else _masked(q, k, v, spec, rows)
            outs.append(out.reshape(-1, *out.shape[2:]))
        return (outs[0] if len(outs) == 1 else torch.cat(outs)).index_select(0, self.inverse)


def tree_plan(tree: PrefixTree, device: torch.device) -> TreePlan:
    """The plan of a prefix tree; sequences without slots of their own need no row."""
    paths = [(path, start) for path, start in zip(tree.paths, tree.starts) if start < len(path)]
    inverse = np.empty(len(tree.tokens), dtype=np.int64)
    groups: list[_Rows] = []
    offset = 0
    for members in _similar(paths):
        chosen = [paths[i] for i in members]
        causal = chosen[0][1] == 0
        width, length = max(len(p) - s for p, s in chosen), max(len(p) for p, _ in chosen)
        queries, offsets = (
            np.zeros((len(chosen), width), dtype=np.int64),
            np.zeros((len(chosen), width), dtype=np.int64),
        )
        keys = np.zeros((len(chosen), length), dtype=np.int64)
        for i, (path, start) in enumerate(chosen):
            own = len(path) - start
            queries[i, :own], offsets[i, :own], keys[i, : len(path)] = path[start:], np.arange(start, len(path)), path
            inverse[path[start:]] = offset + i * width + np.arange(own)
        q, k, at = (torch.from_numpy(x).to(device) for x in (queries, keys, offsets))
        groups.append(_Rows(q, k, at, causal))
        offset += queries.size
    positions = torch.from_numpy(tree.positions).to(device)
    return TreePlan(groups, torch.from_numpy(inverse).to(device), positions)


def _similar(paths: list[tuple[np.ndarray, int]]) -> list[list[int]]:
    """Indices grouped: whole sequences apart from continued ones, lengths within a quarter plus 16 of each other."""

    def sizes(i: int) -> tuple[bool, int, int]:
        path, start = paths[i]
        return start > 0, len(path), len(path) - start

    groups: list[list[int]] = []
    low = high = 0
    for i in sorted(range(len(paths)), key=sizes):
        continued, length, own = sizes(i)
        if groups:
            first = sizes(groups[-1][0])
            low, high = min(low, own), max(high, own)
            near = length <= 1.25 * first[1] + 16 and high <= 1.25 * low + 16
            if continued == first[0] and near:
                groups[-1].append(i)
                continue
        groups.append([i])
        low = high = own
    return groups


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, rows: _Rows) -> torch.Tensor:
    """q: (n, Q, heads, d), k and v: (n, K, kv_heads, d) -> (n, Q, heads, d)."""
    n, width, heads, d = q.shape
    kv = k.shape[2]
    fold = heads // kv
    mask = rows.mask(spec.sliding_window, q.dtype)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if spec.softcap is None:
        return fused_attention(q.transpose(1, 2), k, v, spec.scaling, mask, is_causal=False).transpose(1, 2)
    q = q.view(n, width, kv, fold, d).permute(0, 2, 3, 1, 4).reshape(n, kv, fold * width, d)
    out = _capped(q, k, v, spec, mask.repeat(1, 1, fold, 1))
    return out.view(n, kv, fold, width, -1).permute(0, 3, 1, 2, 4).reshape(n, width, heads, -1)


def _capped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, mask: torch.Tensor | None
) -> torch.Tensor:
    """softmax(softcap * tanh(scaling q k^T / softcap)) v. q: (n, kv, Q, d), k and v: (n, kv, K, d)."""
    assert spec.softcap is not None
    scores = torch.tanh(torch.matmul(q, k.transpose(2, 3)) * (spec.scaling / spec.softcap)) * spec.softcap
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype), v)
