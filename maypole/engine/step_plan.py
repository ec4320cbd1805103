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
from maypole.engine.partial_attention import MUCH, Partial, Seen, attend, bias_of, in_order, joined, together, wide_of
from maypole.engine.partial_attention import documents as documents_partly
from maypole.engine.prefix_cache import Node
from maypole.models.packing import PackedPlan, documents
from maypole.models.plan import AttentionSpec


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
    """One token in some rows of a class. rows: (B,); lengths: (members,) keys of every row read, with the new one.

    `even` says that all of them have as many as the longest, `steady` that nothing may depend on how many there are.
    """

    slots: Slots
    tokens: Tokens
    rows: torch.Tensor
    lengths: np.ndarray
    longest: int
    joined: bool
    even: bool
    steady: bool
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial | torch.Tensor:
        keys, values = self.slots.layers[spec.layer]
        members = len(self.lengths)
        k, v = keys[:members, :, : self.longest], values[:members, :, : self.longest]
        q = query[self.tokens]
        if len(self.rows) < members:  # a row in the middle of its prompt has no token here
            q = q.new_zeros(members, *q.shape[1:]).index_copy_(0, self.rows, q)
        b, heads, d = q.shape
        # Query heads that share a kv head stand as its rows, so keys are never repeated.
        q = q.reshape(b, k.shape[1], heads // k.shape[1], d)
        mask = self._mask(spec.sliding_window, k.dtype)
        # With several threads the kernel's last bits depend on how many rows there are; those of products do not.
        if q.device.type == "cpu" and spec.softcap is None and (self.steady or k.numel() >= MUCH):
            out, logsum = in_order(q, k, v, spec, mask, partly=self.joined)
        # Left to itself torch would take cuDNN's kernel on GPUs, which is compiled anew for every length.
        elif self.joined or spec.softcap is not None or q.device.type == "cuda":
            out, logsum = attend(q, k, v, spec, mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scaling)
            logsum = None
        out, logsum = out.reshape(b, heads, -1), None if logsum is None else logsum.reshape(b, heads)
        if len(self.rows) < members:
            out = out.index_select(0, self.rows)
            logsum = None if logsum is None else logsum.index_select(0, self.rows)
        return out if logsum is None else (out, logsum)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """(members, 1, 1, keys) additive, None where every row sees everything."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self.masks:
            self.masks[window] = None if window is None and self.even else self._bias(window, dtype)
        return self.masks[window]

    def _bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        last = on(self.lengths - 1, self.rows.device)
        gap = last[:, None] - torch.arange(self.longest, device=last.device)
        seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
        return bias_of(seen, dtype)[:, None, None, :]


@dataclass(slots=True)
class _Fresh:
    """First tokens in their rows, of several sequences; `joined` where some of them come after a shared beginning."""

    tokens: Tokens
    plan: PackedPlan
    joined: bool


@dataclass(slots=True)
class _Stretch:
    """Tokens `a` to `b` of the step: a stretch of one sequence, after `before` tokens in its row."""

    slots: Slots
    row: int
    a: int
    b: int
    before: int
    seen: dict[int | None, Seen] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial:
        keys, values = self.slots.layers[spec.layer]
        end = self.before + self.b - self.a
        seen = self._seen(spec.sliding_window, query.device)
        return together(query[self.a : self.b], keys[self.row, :, :end], values[self.row, :, :end], spec, seen)

    def _seen(self, window: int | None, device: torch.device) -> Seen:
        """Each token sees what is before it and itself, inside the window."""
        if window not in self.seen:
            end = self.before + self.b - self.a
            gap = torch.arange(self.before, end, device=device)[:, None] - torch.arange(end, device=device)
            self.seen[window] = Seen(gap >= 0 if window is None else (gap >= 0) & (gap < window))
        return self.seen[window]


@dataclass(slots=True)
class _Shared:
    """A prefix and the tokens of the step, at `positions` (n,), that see it; the last of them at `latest`."""

    node: Node
    tokens: Tokens
    positions: torch.Tensor
    latest: int
    seen: dict[int | None, Seen] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, spec: AttentionSpec) -> Partial:
        keys, values = self.node.layers[spec.layer]
        return together(query[self.tokens], keys, values, spec, self._seen(spec.sliding_window))

    def _seen(self, window: int | None) -> Seen | None:
        """What the window leaves, None where that is everything."""
        if window is None or self.latest - self.node.start < window:
            return None
        if window not in self.seen:
            at = torch.arange(self.node.start, self.node.end, device=self.positions.device)
            self.seen[window] = Seen(self.positions[:, None] - at < window, blind=True)
        return self.seen[window]


@dataclass(slots=True)
class StepPlan:
    """`positions` (T,) of the packed tokens; `last` holds the place of each piece's last token.

    `uniform` is the most common step: a token each of sequences of one class, in order, that begin alike or not at all.
    """

    positions: torch.Tensor
    last: torch.Tensor
    writes: list[_Write]
    decodes: list[_Decode]
    fresh: _Fresh | None
    stretches: list[_Stretch]
    shared: list[_Shared]
    uniform: bool

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """query: (T, heads, d); key, value: (T, kv_heads, d) -> (T, heads, d)."""
        for write in self.writes:
            keys, values = write.slots.layers[spec.layer]
            keys[write.rows, :, write.places] = key[write.tokens].to(keys.dtype)
            values[write.rows, :, write.places] = value[write.tokens].to(values.dtype)
        held = self.writes[0].slots.layers[spec.layer][1].dtype
        q = query.to(held)
        if self.uniform:
            found = self.decodes[0].attend(q, spec)
            for shared in self.shared:
                assert isinstance(found, tuple)
                found = joined(found, shared.attend(q, spec))
            return (found[0] if isinstance(found, tuple) else found).to(value.dtype)
        out = torch.empty(*q.shape[:2], value.shape[2], dtype=held, device=q.device)
        logsum = torch.empty(q.shape[:2], dtype=wide_of(held), device=q.device)
        for decode in self.decodes:
            found = decode.attend(q, spec)
            if isinstance(found, tuple):
                out[decode.tokens], logsum[decode.tokens] = found
            else:
                out[decode.tokens] = found
        if self.fresh is not None:
            at, plan = self.fresh.tokens, self.fresh.plan
            own_q, own_k, own_v = (x.to(held)[at] for x in (query, key, value))
            if self.fresh.joined:
                out[at], logsum[at] = documents_partly(plan, own_q, own_k, own_v, spec)
            else:
                out[at] = plan.attend(own_q, own_k, own_v, spec)
        for stretch in self.stretches:
            out[stretch.a : stretch.b], logsum[stretch.a : stretch.b] = stretch.attend(q, spec)
        for shared in self.shared:
            at = shared.tokens
            out[at], logsum[at] = joined((out[at], logsum[at]), shared.attend(q, spec))
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

    def tensor(numbers: np.ndarray) -> torch.Tensor:
        return on(numbers.astype(np.int64, copy=False), device)

    counts = np.array([p.count for p in pieces])
    rows, held, bases = np.array([(p.holder.row, p.holder.held, p.holder.base) for p in pieces]).T
    ends = np.cumsum(counts)
    starts = ends - counts
    positions = np.arange(ends[-1]) + np.repeat(held - starts, counts)
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
            if holder.held == holder.base:
                fresh.append(i)
            else:
                before = holder.held - holder.base
                stretches.append(_Stretch(slots, holder.row, int(starts[i]), int(ends[i]), before))

    def tokens_of(chosen: list[int]) -> np.ndarray:
        """Of some pieces, in order."""
        mine = np.zeros(len(pieces), dtype=bool)
        mine[chosen] = True
        return np.flatnonzero(np.repeat(mine, counts))

    writes, decodes = [], []
    for members in by_class.values():
        slots = pieces[members[0]].holder.slots
        assert slots is not None
        tokens = tokens_of(members)
        places = positions[tokens] - np.repeat(bases[members], counts[members])
        writes.append(
            _Write(slots, _tokens(tokens, device), tensor(np.repeat(rows[members], counts[members])), tensor(places))
        )
        ones = np.array(sorted((i for i in members if pieces[i].count == 1), key=lambda i: pieces[i].holder.row), int)
        if len(ones):
            row = rows[ones]
            lengths = np.ones(row[-1] + 1, dtype=np.int64)  # rows without a token here see one key, for nothing
            lengths[row] = (held - bases)[ones] + 1
            longest = slots.length if whole_rows else int(lengths.max())
            partial = any(pieces[i].holder.node is not None for i in ones)
            even = not whole_rows and bool((lengths == longest).all())
            at = _tokens(starts[ones], device)
            decodes.append(_Decode(slots, at, tensor(row), lengths, longest, partial, even, whole_rows))
    whole = None
    if fresh:
        plan = documents(counts[fresh].tolist()).to(device)
        after = any(pieces[i].holder.node is not None for i in fresh)
        whole = _Fresh(_tokens(tokens_of(fresh), device), plan, after)
    shared = []
    for node, ids in seeing.items():
        spots = tokens_of(ids)
        shared.append(_Shared(node, _tokens(spots, device), tensor(positions[spots]), int(positions[spots].max())))
    every = slice(0, len(positions))
    uniform = len(decodes) == 1 and all(
        isinstance(part.tokens, slice) and part.tokens == every for part in (*decodes, *shared)
    )
    return StepPlan(tensor(positions), tensor(ends - 1), writes, decodes, whole, stretches, shared, uniform)


def _tokens(at: np.ndarray, device: torch.device) -> Tokens:
    """`at` (n,) as a slice if it may be one."""
    first = int(at[0])
    if bool((at == np.arange(first, first + len(at))).all()):
        return slice(first, first + len(at))
    return on(at, device)


def on(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor on `device`, whose queue is not waited for."""
    return torch.from_numpy(numbers).to(device, non_blocking=True)
