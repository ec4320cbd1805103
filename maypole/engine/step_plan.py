"""Attention of one step: pieces of many sequences, each a new token or a stretch of its prompt, in one forward.

Every token attends to the prefix its sequence shares with others, computed for all of them at once, and to the
sequence's own row; where both exist the two softmaxes are joined by their log-sum-exps. Knows nothing about requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from maypole.engine.kv_memory import Holder, Slots
from maypole.engine.prefix_cache import Node
from maypole.models.attention import AttentionSpec
from maypole.models.packing import PackedPlan, documents

Partial = tuple[torch.Tensor, torch.Tensor]
"""Output (tokens, heads, d) of attention to some of the keys, and the log of its weights' sum (tokens, heads)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `count` tokens of a sequence whose row has room for them."""

    holder: Holder
    count: int


Tokens = slice | torch.Tensor
"""Some tokens of a step: a slice where they stand side by side, which costs no gathering."""


@dataclass(slots=True)
class _Write:
    slots: Slots
    tokens: Tokens
    rows: torch.Tensor
    places: torch.Tensor


@dataclass(slots=True)
class _Decode:
    """One token in some rows of a class. rows, lengths (keys with the new one): (B,); `members`: rows read."""

    slots: Slots
    tokens: Tokens
    rows: torch.Tensor
    lengths: torch.Tensor
    members: int
    longest: int
    joined: bool
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial | torch.Tensor:
        keys, values = self.slots.layers[spec.layer]
        k, v = keys[: self.members, :, : self.longest], values[: self.members, :, : self.longest]
        q = query[self.tokens]
        if len(self.rows) < self.members:  # a row in the middle of its prompt has no token here
            q = q.new_zeros(self.members, *q.shape[1:]).index_copy_(0, self.rows, q)
        b, heads, d = q.shape
        # Query heads that share a kv head stand as its rows, so keys are never repeated.
        q = q.reshape(b, k.shape[1], heads // k.shape[1], d)
        mask = self._mask(spec.sliding_window, k.dtype)
        if self.joined or spec.softcap is not None:
            out, logsum = _attend(q, k, v, spec, mask)
            out, logsum = out.reshape(b, heads, -1), logsum.reshape(b, heads)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scaling).reshape(b, heads, -1)
            logsum = None
        if len(self.rows) < self.members:
            out = out.index_select(0, self.rows)
            logsum = None if logsum is None else logsum.index_select(0, self.rows)
        return out if logsum is None else (out, logsum)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """(members, 1, 1, keys) additive, None where every row sees everything."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self.masks:
            lengths = torch.ones(self.members, dtype=torch.long, device=self.rows.device)
            lengths[self.rows] = self.lengths
            gap = lengths[:, None] - 1 - torch.arange(self.longest, device=lengths.device)
            seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.masks[window] = None if bool(seen.all()) else bias[:, None, None, :]
        return self.masks[window]


@dataclass(slots=True)
class _Stretch:
    """Tokens `a` to `b` of the step: a stretch of one sequence, after `before` tokens in its row."""

    slots: Slots
    row: int
    a: int
    b: int
    before: int

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial:
        keys, values = self.slots.layers[spec.layer]
        end = self.before + self.b - self.a
        bias = _causal(self.before, self.b - self.a, spec.sliding_window, query)
        return _together(query[self.a : self.b], keys[self.row, :, :end], values[self.row, :, :end], spec, bias)


@dataclass(slots=True)
class _Shared:
    """A prefix and the tokens (n,) of the step, at `positions` (n,), that see it."""

    node: Node
    tokens: torch.Tensor
    positions: torch.Tensor

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial:
        keys, values = self.node.layers[spec.layer]
        bias = None
        if spec.sliding_window is not None:
            at = torch.arange(self.node.start, self.node.end, device=self.positions.device)
            hidden = self.positions[:, None] - at >= spec.sliding_window
            if bool(hidden.any()):
                bias = torch.zeros(hidden.shape, dtype=query.dtype, device=hidden.device)
                bias.masked_fill_(hidden, float("-inf"))
        return _together(query.index_select(0, self.tokens), keys, values, spec, bias)


@dataclass(slots=True)
class StepPlan:
    """`positions` (T,) of the packed tokens; `last` holds the place of each piece's last token."""

    positions: torch.Tensor
    last: torch.Tensor
    writes: list[_Write]
    decodes: list[_Decode]
    fresh: tuple[Tokens, PackedPlan] | None
    stretches: list[_Stretch]
    shared: list[_Shared]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (T, heads, d); key, value: (T, kv_heads, d) -> (T, heads, d)."""
        for write in self.writes:
            keys, values = write.slots.layers[spec.layer]
            keys[write.rows, :, write.places] = key[write.tokens].to(keys.dtype)
            values[write.rows, :, write.places] = value[write.tokens].to(values.dtype)
        held = self.writes[0].slots.layers[spec.layer][1].dtype
        q = query.to(held)
        alone = len(self.decodes) == 1 and not (self.shared or self.stretches or self.fresh)
        if alone and isinstance(self.decodes[0].tokens, slice):  # the most common step: one class, in order
            found = self.decodes[0].attend(q, spec)
            return (found[0] if isinstance(found, tuple) else found).to(value.dtype)
        out = torch.empty(*q.shape[:2], value.shape[2], dtype=held, device=q.device)
        logsum = torch.empty(q.shape[:2], dtype=_wide(held), device=q.device)
        for decode in self.decodes:
            found = decode.attend(q, spec)
            if isinstance(found, tuple):
                out[decode.tokens], logsum[decode.tokens] = found
            else:
                out[decode.tokens] = found
        if self.fresh is not None:
            tokens, plan = self.fresh
            own_q, own_k, own_v = (x.to(held)[tokens] for x in (query, key, value))
            out[tokens] = plan.attend(own_q, own_k, own_v, spec)
        for stretch in self.stretches:
            out[stretch.a : stretch.b], logsum[stretch.a : stretch.b] = stretch.attend(q, spec)
        for shared in self.shared:
            own = out.index_select(0, shared.tokens), logsum.index_select(0, shared.tokens)
            joined, weight = _joined(own, shared.attend(q, spec))
            out.index_copy_(0, shared.tokens, joined)
            logsum.index_copy_(0, shared.tokens, weight)
        return out.to(value.dtype)


@dataclass(frozen=True, slots=True)
class PaddedPlan:
    """`plan` for the first `tokens` of a forward; the rest is there for the shape only."""

    plan: StepPlan
    tokens: int

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        n = self.tokens
        out = self.plan.attend(query[:n], key[:n], value[:n], spec)
        return torch.cat([out, out.new_zeros(query.shape[0] - n, *out.shape[1:])])


def step_plan(pieces: Sequence[Piece], device: torch.device, *, whole_rows: bool = False) -> StepPlan:
    """The plan of `pieces`, their tokens one after the other.

    `whole_rows` reads every row to the end of its class, so that no result depends on who else is in it.
    """

    def tensor(numbers: Sequence[int] | np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(device)

    starts = np.concatenate([[0], np.cumsum([p.count for p in pieces])])
    positions = np.concatenate([np.arange(p.holder.held, p.holder.held + p.count) for p in pieces])
    by_class: dict[int, list[int]] = {}
    seeing: dict[Node, list[int]] = {}
    fresh: list[int] = []
    stretches: list[_Stretch] = []
    for i, piece in enumerate(pieces):
        holder = piece.holder
        slots = holder.slots
        assert slots is not None
        by_class.setdefault(slots.length, []).append(i)
        for node in holder.node.chain() if holder.node is not None else ():
            seeing.setdefault(node, []).append(i)
        if piece.count > 1:
            if holder.held == 0:
                fresh.append(i)
            else:
                before = holder.held - holder.base
                stretches.append(_Stretch(slots, holder.row, int(starts[i]), int(starts[i + 1]), before))
    writes, decodes = [], []
    for members in by_class.values():
        holders = [pieces[i].holder for i in members]
        slots = holders[0].slots
        assert slots is not None
        tokens = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
        rows = np.repeat([h.row for h in holders], [pieces[i].count for i in members])
        places = positions[tokens] - np.repeat([h.base for h in holders], [pieces[i].count for i in members])
        writes.append(_Write(slots, _tokens(tokens, device), tensor(rows), tensor(places)))
        ones = sorted((i for i in members if pieces[i].count == 1), key=lambda i: pieces[i].holder.row)
        if ones:
            chosen = [pieces[i].holder for i in ones]
            lengths = [h.held - h.base + 1 for h in chosen]
            longest = slots.length if whole_rows else max(lengths)
            joined = any(h.node is not None for h in chosen)
            at = _tokens(np.array([starts[i] for i in ones]), device)
            row = tensor([h.row for h in chosen])
            decodes.append(_Decode(slots, at, row, tensor(lengths), chosen[-1].row + 1, longest, joined))
    spans = [np.arange(starts[i], starts[i + 1]) for i in fresh]
    whole = (_tokens(np.concatenate(spans), device), documents([len(s) for s in spans]).to(device)) if fresh else None
    return StepPlan(
        positions=tensor(positions),
        last=tensor(starts[1:] - 1),
        writes=writes,
        decodes=decodes,
        fresh=whole,
        stretches=stretches,
        shared=[
            _Shared(node, tensor(spots), tensor(positions[spots]))
            for node, ids in seeing.items()
            for spots in [np.concatenate([np.arange(starts[i], starts[i + 1]) for i in ids])]
        ],
    )


def _tokens(at: np.ndarray, device: torch.device) -> Tokens:
    """`at` (n,) as a slice if it may be one."""
    first = int(at[0])
    if bool((at == np.arange(first, first + len(at))).all()):
        return slice(first, first + len(at))
    return torch.from_numpy(at).to(device)


def _causal(before: int, count: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(count, before + count) additive: each token sees what is before it and itself, inside the window."""
    i = torch.arange(before, before + count, device=like.device)
    gap = i[:, None] - torch.arange(before + count, device=like.device)
    seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


def _together(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor | None
) -> Partial:
    """Many tokens to the same keys. q: (n, heads, d), k and v: (kv_heads, K, d), bias: (n, K)."""
    n, heads, d = q.shape
    kv = k.shape[0]
    fold = heads // kv
    q = q.view(n, kv, fold, d).permute(1, 2, 0, 3).reshape(1, kv, fold * n, d)
    bias = None if bias is None else bias.repeat(fold, 1)
    out, logsum = _attend(q, k[None], v[None], spec, bias)
    out = out.view(kv, fold, n, -1).permute(2, 0, 1, 3).reshape(n, heads, -1)
    return out, logsum.view(kv, fold, n).permute(2, 0, 1).reshape(n, heads)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor | None
) -> Partial:
    """q: (n, kv_heads, Q, d), k and v: (n, kv_heads, K, d), bias: as (n, kv_heads, Q, K) -> (..., d), (...)."""
    scores = torch.matmul(q, k.transpose(2, 3)) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if bias is not None:
        scores = scores + bias
    wide = scores.to(_wide(scores.dtype))
    top = wide.amax(dim=-1, keepdim=True).clamp_min(-1e30)  # a row that sees no key here has only -inf
    weights = (wide - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    out = torch.matmul((weights / total.clamp_min(1e-30)).to(v.dtype), v)
    return out, (top + total.log()).squeeze(-1)


def _joined(a: Partial, b: Partial) -> Partial:
    """Attention to both sets of keys."""
    weight = torch.logaddexp(a[1], b[1])
    first, second = (a[1] - weight).exp_().unsqueeze(-1), (b[1] - weight).exp_().unsqueeze(-1)
    return (a[0] * first + b[0] * second).to(a[0].dtype), weight


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
