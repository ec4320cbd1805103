"""Documents and trees as one row of tokens: rows of similar length are gathered, attended and scattered back.

A document is a row; a tree (a prompt with several answers) has one row per leaf, and each shared token is computed
once outside attention. Knows nothing about what the tokens are for.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from maypole.models.attention import AttentionSpec

MATH_LIMIT = 256
"""Rows up to this length use the explicit softmax(qk)v, which beats the fused kernel on CPUs in bf16."""
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of similar length: `slots` (rows, length) points into the packed tokens; padding points at slot 0."""

    slots: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.slots.shape[0]), int(self.slots.shape[1])


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """The plan of training and scoring: every row is causal and sees nothing of the others.

    `positions` (tokens,) are the position ids of the packed tokens; `inverse` (tokens,) says where in the
    concatenated group outputs each token's own output lies (its first row, if it is shared by several); `identity`:
    there where it lies among the tokens, so that the groups are stretches of them.
    """

    groups: tuple[Group, ...]
    inverse: torch.Tensor
    positions: torch.Tensor
    identity: bool = field(default=False)

    @property
    def tokens(self) -> int:
        return int(self.positions.shape[0])

    def to(self, device: torch.device | str) -> "PackedPlan":
        groups = tuple(Group(g.slots.to(device)) for g in self.groups)
        return PackedPlan(groups, self.inverse.to(device), self.positions.to(device), self.identity)

    def rows_of(self, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Tensors (tokens, …) as (rows, length, …), group by group: gathered, or where `identity` as they stand."""
        begin = 0
        for group in self.groups:
            end = begin + group.slots.numel()
            if self.identity:
                yield tuple(x[begin:end].unflatten(0, group.shape) for x in tensors)
            else:
                flat = group.slots.reshape(-1)
                yield tuple(x.index_select(0, flat).unflatten(0, group.shape) for x in tensors)
            begin = end

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (tokens, heads, d); key, value: (tokens, kv_heads, d) -> (tokens, heads, d)."""
        # Under autocast rotary embedding leaves q and k in fp32 beside a bf16 v.
        query, key = query.to(value.dtype), key.to(value.dtype)
        heads, d = query.shape[1], value.shape[2]
        outs = [causal_attention(q, k, v, spec).reshape(-1, heads, d) for q, k, v in self.rows_of(query, key, value)]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if self.identity else out.index_select(0, self.inverse)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Causal attention of right-padded rows. q: (n, L, heads, d), k and v: (n, L, kv_heads, d) -> (n, L, heads, d)."""
    length = q.shape[1]
    window = spec.sliding_window if spec.sliding_window is not None and spec.sliding_window < length else None
    explicit = spec.softcap is not None or spec.dropout > 0.0
    if explicit or (length <= MATH_LIMIT and q.device.type == "cpu"):
        return _explicit(q, k, v, spec, window)
    dtype = q.dtype
    if q.device.type == "cpu" and dtype != torch.float64:  # the backward of the CPU kernel is slow in bf16
        q, k, v = q.float(), k.float(), v.float()
    mask = None if window is None else allowed(length, window, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        out = fused_attention(q, k, v, spec.scaling, mask, is_causal=mask is None)
    return out.transpose(1, 2).to(dtype)


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, mask: torch.Tensor | None, *, is_causal: bool
) -> torch.Tensor:
    """torch's own, for grouped heads too. q: (n, heads, Q, d), k and v: (n, kv_heads, K, d) -> (n, heads, Q, d).

    On GPUs without cuDNN's kernel, which is compiled anew for every length.
    """
    fold = q.shape[1] // k.shape[1]
    if fold > 1 and q.device.type == "cuda" and (mask is not None or q.dtype == torch.float32):
        # The one kernel there that knows groups takes neither; without it all scores would be held at once.
        k, v, fold = k.repeat_interleave(fold, 1), v.repeat_interleave(fold, 1), 1
    with sdpa_kernel(_KERNELS) if q.device.type == "cuda" else nullcontext():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=fold > 1
        )


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, window: int | None
) -> torch.Tensor:
    """softmax(scaling q k^T) v with the query heads of one kv head folded into the length: no repeated k and v."""
    n, length, heads, d = q.shape
    kv = k.shape[2]
    fold = heads // kv
    q = q.view(n, length, kv, fold, d).permute(0, 2, 3, 1, 4).reshape(n * kv, fold * length, d)
    k = k.permute(0, 2, 3, 1).reshape(n * kv, d, length)
    v = v.permute(0, 2, 1, 3).reshape(n * kv, length, v.shape[3])
    bias = _bias(length, window, fold, q.dtype, q.device)
    with torch.autocast(q.device.type, enabled=False):
        if spec.softcap is None:
            scores = torch.baddbmm(bias, q, k, beta=1.0, alpha=spec.scaling)
        else:
            scores = torch.tanh(torch.bmm(q, k) * (spec.scaling / spec.softcap)) * spec.softcap + bias
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype)
        if spec.dropout > 0.0:
            weights = F.dropout(weights, spec.dropout)
        out = torch.bmm(weights, v)
    return out.view(n, kv, fold, length, -1).permute(0, 3, 1, 2, 4).reshape(n, length, heads, -1)


@lru_cache(maxsize=64)
def allowed(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(L, L) bool: position i sees j <= i, and with a window only the last `window` positions, itself included."""
    i = torch.arange(length, device=device)
    allowed = i[:, None] >= i[None, :]
    if window is not None:
        allowed &= i[:, None] - i[None, :] < window
    return allowed


@lru_cache(maxsize=128)
def _bias(length: int, window: int | None, fold: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    bias = torch.zeros(length, length, dtype=dtype, device=device)
    bias.masked_fill_(~allowed(length, window, device), float("-inf"))
    return bias.repeat(fold, 1).unsqueeze(0)


def documents(lengths: Sequence[int]) -> PackedPlan:
    """A plan for documents that stand one after the other in the packed row; none may be empty."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return pack_rows([np.arange(a, b) for a, b in itertools.pairwise(starts)], int(starts[-1]))


def pack_rows(rows: Sequence[np.ndarray], tokens: int) -> PackedPlan:
    """A plan from attention rows: each is the path of slots from a root to a leaf, in order; positions count along it.

    Every slot below `tokens` must be on at least one row; a slot on several rows (a shared prefix) takes its output
    from the first of them, where what precedes it is the same by construction.
    """
    lengths = np.array([len(r) for r in rows], dtype=np.int64)
    positions = np.zeros(tokens, dtype=np.int64)
    inverse = np.full(tokens, -1, dtype=np.int64)
    groups: list[Group] = []
    offset = 0
    for members in _similar(lengths):
        longest = int(lengths[members].max())
        slots = np.zeros((len(members), longest), dtype=np.int64)
        for i, member in enumerate(members):
            row = rows[member]
            slots[i, : len(row)] = row
            positions[row] = np.arange(len(row))
            fresh = inverse[row] < 0
            inverse[row[fresh]] = offset + i * longest + np.nonzero(fresh)[0]
        groups.append(Group(torch.from_numpy(slots)))
        offset += slots.size
    if (inverse < 0).any():
        raise ValueError("a packed token is on no attention row")
    identity = offset == tokens and bool((inverse == np.arange(tokens)).all())
    return PackedPlan(tuple(groups), torch.from_numpy(inverse), torch.from_numpy(positions), identity)


def _similar(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices of rows grouped so that the longest of a group is at most 1.25 times its shortest plus 16."""
    order = np.argsort(lengths, kind="stable")
    groups: list[np.ndarray] = []
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[i]] > 1.25 * lengths[order[start]] + 16:
            groups.append(np.sort(order[start:i]))
            start = i
    return groups
