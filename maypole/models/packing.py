"""Documents and trees as one row of tokens: rows of similar length are gathered, attended and scattered back.

A document is a row; a tree (a prompt with several answers) has one row per leaf, and each shared token is computed
once outside attention. On CPUs inside it too: of a leaf's row only what follows the shared beginning asks, and all of
the row is seen. Knows nothing about what the tokens are for.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from maypole.models.plan import AttentionSpec

MATH_LIMIT = 256
"""Rows up to this length use the explicit softmax(qk)v, which beats the fused kernel on CPUs in bf16."""
WORTH_SKIPPING = 0.25
"""Of a row: from this share on its shared beginning asks nothing again. More kinds of groups cost time themselves."""
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of similar length: `slots` (rows, length) points into the packed tokens; padding points at slot 0.

    Where others ask than are seen, `asking` (rows, Q) are their places among the queries; where only the end of each
    row asks, `begin` (rows,) are the places in the rows at which the ends begin.
    """

    slots: torch.Tensor
    asking: torch.Tensor | None = None
    begin: torch.Tensor | None = None
    _biases: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict, init=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.slots.shape[0]), int(self.slots.shape[1])

    def to(self, device: torch.device | str) -> "Group":
        asking, begin = (x if x is None else x.to(device) for x in (self.asking, self.begin))
        return Group(self.slots.to(device), asking, begin)

    def bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(rows, 1, Q, length): -inf on what the ends must not see: what follows, what their window leaves behind."""
        if (window, dtype) not in self._biases:
            assert self.asking is not None
            assert self.begin is not None
            i = self.begin[:, None, None] + torch.arange(self.asking.shape[1], device=self.slots.device)[:, None]
            j = torch.arange(self.slots.shape[1], device=self.slots.device)
            i = i.clamp(max=len(j) - 1)  # padding sees something too, or it would be no number
            hidden = j > i if window is None else (j > i) | (i - j >= window)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._biases[window, dtype] = bias.masked_fill_(hidden, float("-inf"))[:, None]
        return self._biases[window, dtype]


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """The plan of training and scoring: every row is causal and sees nothing of the others.

    `positions` (tokens,) are the position ids of the packed tokens; `inverse` (tokens,) says where in the
    concatenated group outputs each token's own output lies (its first row, if it is shared by several); `identity`:
    there where it lies among the tokens, so that the groups are stretches of them. `reading`, where only some tokens
    are read.
    """

    groups: tuple[Group, ...]
    inverse: torch.Tensor
    positions: torch.Tensor
    identity: bool = field(default=False)
    reading: "Reading | None" = None

    @property
    def tokens(self) -> int:
        return int(self.positions.shape[0])

    def to(self, device: torch.device | str) -> "PackedPlan":
        groups = tuple(group.to(device) for group in self.groups)
        reading = self.reading and self.reading.to(device)
        return PackedPlan(groups, self.inverse.to(device), self.positions.to(device), self.identity, reading)

    def rows_of(self, query: torch.Tensor, *seen: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Tensors (tokens, …) as (rows, length, …), group by group: gathered, or where `identity` as they stand.

        Of `query` only what asks: (rows, Q, …) where that is the ends of rows. All groups are gathered at once, so that
        a gradient is scattered once too.
        """
        asking = [group.slots if group.asking is None else group.asking for group in self.groups]
        slots = [group.slots for group in self.groups]
        return zip(self._parts(query, asking), *(self._parts(x, slots) for x in seen))

    def _parts(self, x: torch.Tensor, slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        gathered = x if self.identity else x.index_select(0, torch.cat([some.reshape(-1) for some in slots]))
        parts = gathered.split([some.numel() for some in slots])
        return [part.unflatten(0, tuple(some.shape)) for part, some in zip(parts, slots)]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (tokens, heads, d); key, value: (tokens, kv_heads, d) -> (tokens, heads, d)."""
        # Under autocast rotary embedding leaves q and k in fp32 beside a bf16 v.
        query, key = query.to(value.dtype), key.to(value.dtype)
        heads, d = query.shape[1], value.shape[2]
        outs = [
            causal_attention(q, k, v, spec) if group.begin is None else _ends(q, k, v, spec, group)
            for group, (q, k, v) in zip(self.groups, self.rows_of(query, key, value))
        ]
        outs = [out.reshape(-1, heads, d) for out in outs]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if self.identity else out.index_select(0, self.inverse)


@dataclass(frozen=True, slots=True)
class Reading:
    """Those of the packed tokens that are read: what `maypole.models.last_layer` goes by.

    kept: (R,) their slots, in order; rest: (tokens - R,) the others'; place: (tokens,) where in the concatenation of
    both each slot stands. `plan` is that of the kept ones' queries.
    """

    kept: torch.Tensor
    rest: torch.Tensor
    place: torch.Tensor
    plan: PackedPlan

    def to(self, device: torch.device | str) -> "Reading":
        return Reading(self.kept.to(device), self.rest.to(device), self.place.to(device), self.plan.to(device))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (R, heads, d), key and value: (tokens, kv_heads, d) -> (R, heads, d)."""
        if self.plan.tokens == len(self.kept):
            return self.plan.attend(query, key, value, spec)
        everyone = query.new_zeros(len(key), *query.shape[1:]).index_copy(0, self.kept, query)
        return self.plan.attend(everyone, key, value, spec).index_select(0, self.kept)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Causal attention of right-padded rows. q: (n, L, heads, d), k and v: (n, L, kv_heads, d) -> (n, L, heads, d)."""
    length = q.shape[1]
    window = spec.sliding_window if spec.sliding_window is not None and spec.sliding_window < length else None
    explicit = spec.softcap is not None or spec.dropout > 0.0
    if explicit or (length <= MATH_LIMIT and q.device.type == "cpu"):
        return _explicit(q, k, v, spec, _bias(length, window, q.shape[2] // k.shape[2], q.dtype, q.device))
    return _fused(q, k, v, spec, None if window is None else allowed(length, window, q.device))


def _ends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, group: Group) -> torch.Tensor:
    """Attention of the ends of rows to the whole rows. q: (n, Q, heads, d); k, v: (n, L, kv_heads, d) ->
    (n, Q, heads, d)."""
    length = k.shape[1]
    window = spec.sliding_window if spec.sliding_window is not None and spec.sliding_window < length else None
    if spec.softcap is not None or spec.dropout > 0.0 or q.shape[1] * length <= MATH_LIMIT**2:
        return _explicit(q, k, v, spec, group.bias(window, q.dtype))
    return _fused(q, k, v, spec, group.bias(window, torch.promote_types(q.dtype, torch.float32)))


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, mask: torch.Tensor | None
) -> torch.Tensor:
    """`fused_attention` of (n, length, heads, d); causal where there is no mask."""
    dtype = q.dtype
    if q.device.type == "cpu" and dtype != torch.float64:  # the backward of the CPU kernel is slow in bf16
        q, k, v = q.float(), k.float(), v.float()
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
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor
) -> torch.Tensor:
    """softmax(scaling q k^T + bias) v with the query heads of one kv head folded into the queries: no repeated k and v.

    q: (n, Q, heads, d); k, v: (n, L, kv_heads, d); bias: (1, heads / kv_heads * Q, L), or of each row (n, 1, Q, L).
    """
    with torch.autocast(q.device.type, enabled=False):
        if spec.softcap is None and spec.dropout == 0.0:
            found: Any = _Explicit.apply(q, k, v, bias, spec.scaling)
            return found
        kv = k.shape[2]
        scores = torch.bmm(_folded(q, kv), _by_head(k).mT)
        if spec.softcap is not None:
            scores = torch.tanh(scores * (spec.scaling / spec.softcap)) * spec.softcap
        weights = _softmax(_biased(scores, bias, 1.0 if spec.softcap is not None else spec.scaling)).to(v.dtype)
        return _unfolded(torch.bmm(F.dropout(weights, spec.dropout), _by_head(v)), q)


def _folded(x: torch.Tensor, kv: int) -> torch.Tensor:
    """(n, Q, heads, d) -> (n kv, heads / kv Q, d): the query heads of a kv head one after the other."""
    n, asking, heads, d = x.shape
    return x.view(n, asking, kv, heads // kv, d).permute(0, 2, 3, 1, 4).reshape(n * kv, heads // kv * asking, d)


def _unfolded(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`_folded` undone: (n kv, heads / kv Q, d) -> (n, Q, heads, d) where `like` is (n, Q, heads, …)."""
    n, asking, heads, _ = like.shape
    kv = x.shape[0] // n
    return x.view(n, kv, heads // kv, asking, -1).permute(0, 3, 1, 2, 4).reshape(n, asking, heads, -1)


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """(n, L, kv, d) -> (n kv, L, d)."""
    return x.permute(0, 2, 1, 3).reshape(x.shape[0] * x.shape[2], x.shape[1], -1)


class _Explicit(torch.autograd.Function):
    """softmax(scaling q k^T + bias) v, shapes as in `_explicit`. Of what is made on the way the weights are kept, in
    the type of q.

    Both ways multiply by the same three kinds of product: of each shape oneDNN writes code first, which takes longer
    than to run it once.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        folded, k, v = _folded(q, k.shape[2]), _by_head(k), _by_head(v)
        weights = _softmax(_biased(torch.bmm(folded, k.mT), bias, scaling)).to(q.dtype)
        ctx.save_for_backward(folded, k, v, weights)
        ctx.scaling = scaling
        return _unfolded(torch.bmm(weights, v), q)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        n, kv = len(upstream), len(k) // len(upstream)
        folded = _folded(upstream, kv)
        error = torch.bmm(folded, v.mT)
        error = torch.ops.aten._softmax_backward_data(error, weights, -1, weights.dtype)
        dq, dk = torch.bmm(error, k).mul_(ctx.scaling), torch.bmm(error.mT, q).mul_(ctx.scaling)
        dv = torch.bmm(weights.mT, folded)
        dk, dv = (x.view(n, kv, *x.shape[1:]).transpose(1, 2) for x in (dk, dv))
        return _unfolded(dq, upstream), dk, dv, None, None


def _biased(scores: torch.Tensor, bias: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling * scores + bias, as `_explicit` has them."""
    if bias.ndim == 3:
        return torch.add(bias, scores, alpha=scaling)
    n, _, asking, length = bias.shape
    return torch.add(bias, scores.view(n, -1, asking, length), alpha=scaling).view_as(scores)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in fp32 at least."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


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


def pack_rows(
    rows: Sequence[np.ndarray], tokens: int, *, whole: bool = True, read: np.ndarray | None = None
) -> PackedPlan:
    """A plan from attention rows: each is the path of slots from a root to a leaf, in order; positions count along it.

    Every slot below `tokens` must be on at least one row; a slot on several rows (a shared prefix) takes its output
    from the first of them, where what precedes it is the same by construction. The others need not ask for it again:
    with `whole` they do, in attention that needs no mask, which is what GPUs are fast at.
    With `read` the last layer may give the states of these slots and of those that follow them on their rows alone.
    """
    positions = np.zeros(tokens, dtype=np.int64)
    taken = np.zeros(tokens, dtype=bool)
    begins = np.zeros(len(rows), dtype=np.int64)
    for r, row in enumerate(rows):
        positions[row] = np.arange(len(row))
        shared = int(np.argmin(taken[row])) if not taken[row].all() else 0
        begins[r] = 0 if whole or shared < WORTH_SKIPPING * len(row) else shared
        taken[row] = True
    if not taken.all():
        raise ValueError("a packed token is on no attention row")
    plan = _plan(rows, begins, positions)
    return plan if read is None else replace(plan, reading=_reading(rows, begins, plan, read, whole=whole))


def _reading(
    rows: Sequence[np.ndarray], begins: np.ndarray, plan: PackedPlan, read: np.ndarray, *, whole: bool
) -> Reading | None:
    """None where nothing is read, or almost everything."""
    tokens = plan.tokens
    wanted = np.zeros(tokens, dtype=bool)
    wanted[read] = True
    firsts = np.array([int(np.argmax(wanted[row])) if wanted[row].any() else len(row) for row in rows])
    kept = np.zeros(tokens, dtype=bool)
    for row, first in zip(rows, firsts):
        kept[row[first:]] = True
    if not 0.0 < kept.mean() <= 1.0 - WORTH_SKIPPING:
        return None
    slots, rest = np.nonzero(kept)[0], np.nonzero(~kept)[0]
    place = np.empty(tokens, dtype=np.int64)
    place[np.concatenate([slots, rest])] = np.arange(tokens)
    if not whole:
        asking = [(row, max(a, b)) for row, a, b in zip(rows, begins, firsts) if b < len(row)]
        plan = _plan([row for row, _ in asking], np.array([b for _, b in asking]), plan.positions.numpy()[slots], slots)
    return Reading(torch.from_numpy(slots), torch.from_numpy(rest), torch.from_numpy(place), plan)


def _plan(
    rows: Sequence[np.ndarray], begins: np.ndarray, positions: np.ndarray, kept: np.ndarray | None = None
) -> PackedPlan:
    """Rows that ask from `begins` on; there are queries of all slots or of those `kept`, at `positions`."""
    query = np.arange(len(positions))
    if kept is not None:
        query = np.zeros(max(int(row.max()) for row in rows) + 1, dtype=np.int64)
        query[kept] = np.arange(len(kept))
    inverse = np.full(len(positions), -1, dtype=np.int64)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    groups: list[Group] = []
    offset = 0
    for members in _alike(lengths, lengths - begins):
        ends = [query[rows[m][begins[m] :]] for m in members]
        slots, asking = _padded([rows[m] for m in members]), _padded(ends)
        for i, end in enumerate(ends):
            fresh = inverse[end] < 0
            inverse[end[fresh]] = offset + i * asking.shape[1] + np.nonzero(fresh)[0]
        offset += asking.size
        some = bool(begins[members].any())
        asks = torch.from_numpy(asking) if some or kept is not None else None
        groups.append(Group(torch.from_numpy(slots), asks, torch.from_numpy(begins[members]) if some else None))
    as_they_stand = kept is None and not begins.any() and offset == len(positions)
    identity = as_they_stand and bool((inverse == np.arange(offset)).all())
    return PackedPlan(tuple(groups), torch.from_numpy(inverse), torch.from_numpy(positions), identity)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _alike(lengths: np.ndarray, asking: np.ndarray) -> list[np.ndarray]:
    """Indices of rows grouped by length, those of which only the end asks apart and by the length of that end too."""
    whole, ends = np.nonzero(asking == lengths)[0], np.nonzero(asking < lengths)[0]
    groups = [whole[some] for some in _similar(lengths[whole])] if len(whole) else []
    for some in _similar(lengths[ends]) if len(ends) else []:
        members = ends[some]
        groups += [members[alike] for alike in _similar(asking[members])]
    return groups


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
