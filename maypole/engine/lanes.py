"""Many adapters in one forward: each token of the packed batch has the adapter of its request, or none.

LoRA adapters whose tokens are few are computed together in the masked-dense form (LoRAX, arXiv 2405.00732):
y += ((x A^T) * M) B with the factors of all of them stacked, A: (R, d_in), B: (R, d_out), and M: (tokens, R) that
leaves each token its own block. That is exact, for any mix of ranks, in two products a layer. On CPUs many adapters of
equal rank are multiplied group by group instead, and one with a long stretch of tokens by itself. Knows nothing about
requests, names and files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from maypole.engine.adapters import Adapter, Lora
from maypole.engine.prefix_tree import Ids

Segment = tuple[Adapter, torch.Tensor | None]
"""An adapter and the tokens (n,) it applies to, counted on the host; None for all of them."""

SEGMENT_COST = {"cpu": 2**20, "cuda": 2**31}
"""Multiply-adds that take as long as what a segment of its own costs besides them: gathering, launching, adding."""
GROUPED = 2**21
"""Multiply-adds on a CPU that take as long as bringing tokens into groups and back."""
FEW = 2
"""Tokens of an adapter up to which its second factor is fetched for each of them rather than multiplied by groups."""
KEPT = 2
"""How many times the rank that a step needs the stacked factors may have before they are stacked anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """One layer of several adapters. down: (R, d_in), up: (R, d_out), bias: (adapters, d_out).

    `blocks` has the place and rank of every adapter that changes the layer: layers with equal blocks share a mask.
    `even` is the rank of all members of the stack, 0 where it is not one.
    """

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    blocks: tuple[tuple[int, int], ...]
    even: int


@dataclass(slots=True, eq=False)
class Stack:
    """LoRA adapters side by side, layer by layer as they are needed."""

    members: tuple[Adapter, ...]
    layers: dict[str, Stacked | None] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return sum(adapter.rank for adapter in self.members)

    def layer(self, name: str) -> Stacked | None:
        """None where no member changes the layer."""
        if name not in self.layers:
            present = [(i, a.layers[name]) for i, a in enumerate(self.members) if name in a.layers]
            self.layers[name] = _stacked(present, len(self.members)) if present else None
        return self.layers[name]


def _stacked(present: Sequence[tuple[int, Any]], members: int) -> Stacked:
    parts: list[tuple[int, Lora]] = list(present)
    dtype = parts[0][1].down.dtype
    for _, lora in parts:
        dtype = torch.promote_types(dtype, lora.down.dtype)
    down = torch.cat([lora.down.to(dtype) for _, lora in parts])
    up = torch.cat([lora.up.to(dtype).t() for _, lora in parts])
    bias = None
    if any(lora.bias is not None for _, lora in parts):
        bias = up.new_zeros(members, up.shape[1])
        for i, lora in parts:
            if lora.bias is not None:
                bias[i] = lora.bias
    blocks = tuple((i, lora.down.shape[0]) for i, lora in parts)
    ranks = {rank for _, rank in blocks}
    return Stacked(down, up, bias, blocks, ranks.pop() if len(parts) == members and len(ranks) == 1 else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The tokens of a step adapter by adapter, each with room for as many as the largest has.

    `gather` (members * most,) has a token for each place, any for one that stays empty; `places` (n,) has the place of
    each of `tokens` (n,), which are None for all in their order. `owners` (n,) has the group of each where groups are
    small.
    """

    gather: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor | None
    owners: torch.Tensor | None

    def add(self, layer: Stacked, members: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """Each group by its own factors, in one product of many small ones: no token meets those of another."""
        down, up = layer.down.view(members, -1, x.shape[1]), layer.up.view(members, -1, out.shape[1])
        rows = x.index_select(0, self.gather).to(down.dtype).view(members, -1, x.shape[1])
        inner = torch.bmm(rows, down.transpose(1, 2))
        if self.owners is None:
            part = torch.bmm(inner, up).view(-1, out.shape[1]).index_select(0, self.places)
        else:
            inner = inner.view(-1, 1, layer.even).index_select(0, self.places)
            part = torch.bmm(inner, up.index_select(0, self.owners)).squeeze(1)
        if self.tokens is None:
            out += part.to(out.dtype)
        else:
            out.index_add_(0, self.tokens, part.to(out.dtype))


@dataclass(slots=True, eq=False)
class Dense:
    """Tokens of a step that are computed together: `rows` (n,) of it, None for all; `owners` (n,) places in `stack`,
    -1 for tokens without an adapter."""

    stack: Stack
    rows: torch.Tensor | None
    owners: torch.Tensor
    single: bool
    groups: Groups | None = None
    masks: dict[tuple[tuple[int, int], ...], torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (T, d_out) what the members add to layer `name` at `x` (T, d_in)."""
        layer = self.stack.layer(name)
        if layer is None:
            return
        members = len(self.stack.members)
        if self.groups is not None and layer.even:
            self.groups.add(layer, members, x, out)
        else:
            self._add_masked(layer, x, out)
        if layer.bias is not None:
            bias = layer.bias.index_select(0, self.owners.clamp_min(0))
            self._put(out, bias.masked_fill_((self.owners < 0)[:, None], 0.0))

    def _add_masked(self, layer: Stacked, x: torch.Tensor, out: torch.Tensor) -> None:
        chosen = x if self.rows is None else x.index_select(0, self.rows)
        inner = chosen.to(layer.down.dtype) @ layer.down.t()
        if not self.single:  # filled, not multiplied: zero times an infinity of somebody else would be a NaN
            inner.masked_fill_(self._mask(layer.blocks), 0.0)
        if self.rows is None and layer.up.dtype == out.dtype:
            out.addmm_(inner, layer.up)
        else:
            self._put(out, inner @ layer.up)

    def _put(self, out: torch.Tensor, part: torch.Tensor) -> None:
        if self.rows is None:
            out += part.to(out.dtype)
        else:
            out.index_add_(0, self.rows, part.to(out.dtype))

    def _mask(self, blocks: tuple[tuple[int, int], ...]) -> torch.Tensor:
        """(n, R), True where a token has nothing to do with a column."""
        if blocks not in self.masks:
            places, ranks = zip(*blocks)
            owner_of = torch.repeat_interleave(torch.tensor(places), torch.tensor(ranks)).to(self.owners.device)
            self.masks[blocks] = self.owners[:, None] != owner_of
        return self.masks[blocks]


class Lanes:
    """The hooks in an engine's private module, and what they add during one forward.

    `segments` says which tokens of it have which adapter. Where results must not depend on company (`alone`) every
    adapter is applied to all tokens and each token takes its own: shapes, and with them the order of sums, are then the
    same whoever comes along.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        self._hooked: set[str] = set()
        self._segments: Sequence[Segment] = ()
        self._stack: Stack | None = None
        self._planned_for: Sequence[Segment] = ()
        self._plan: tuple[Dense | None, Sequence[Segment]] | None = None
        self._last: tuple[list[tuple[int, Adapter | None]], Sequence[Segment]] = [], ()
        self.alone = False

    @property
    def segments(self) -> Sequence[Segment]:
        """Adapters of the forward under way and their tokens; empty between forwards.

        What follows from them is kept until other segments are set.
        """
        return self._segments

    @segments.setter
    def segments(self, segments: Sequence[Segment]) -> None:
        if segments and segments is not self._planned_for:
            for adapter, _ in segments:
                self.prepare(adapter)
            self._planned_for, self._plan = segments, None
        self._segments = segments

    def segments_of(self, counts: Sequence[int], adapters: Sequence[Adapter | None]) -> Sequence[Segment]:
        """The segments of a step of pieces with so many tokens each: the very same for a step like the last."""
        like = [*zip(counts, adapters)]
        if like != self._last[0]:
            self._last = like, segments_of(np.repeat([id(a) for a in adapters], counts), adapters)
        return self._last[1]

    @property
    def stacked_bytes(self) -> int:
        """Of the factors that are held a second time, side by side."""
        layers = self._stack.layers.values() if self._stack is not None else ()
        parts = [part for s in layers if s is not None for part in (s.down, s.up, s.bias) if part is not None]
        return sum(part.nbytes for part in parts)

    def prepare(self, adapter: Adapter) -> None:
        """Hook the layers that `adapter` contributes to."""
        for name in adapter.layers.keys() - self._hooked:
            self._modules[name].register_forward_hook(self._hook(name))
            self._hooked.add(name)

    def forget(self, adapter: Adapter) -> None:
        """Keep no copy of `adapter`."""
        stack = self._stack
        if stack is not None and adapter in stack.members:
            self._stack = None
        self._planned_for, self._plan, self._last = (), None, ([], ())

    def add(self, name: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (tokens, d_out), in place, what the adapters of the tokens make of `x` (tokens, d_in)."""
        if self._plan is None:
            self._plan = self._planned(len(x), x.device)
        dense, apart = self._plan
        if dense is not None:
            dense.add(name, x, out)
        for adapter, rows in apart:
            layer = adapter.layers.get(name)
            if layer is None:
                continue
            if rows is None:
                out += layer(x).to(out.dtype)
            elif self.alone:
                out.index_add_(0, rows, layer(x).index_select(0, rows).to(out.dtype))
            else:
                out.index_add_(0, rows, layer(x.index_select(0, rows)).to(out.dtype))

    def _planned(self, tokens: int, device: torch.device) -> tuple[Dense | None, Sequence[Segment]]:
        """What is computed together, and which segments by themselves, in a forward of so many tokens."""
        if self.alone:
            return None, _on(device, self._segments)
        together = [segment for segment in self._segments if segment[0].rank]
        apart = [segment for segment in self._segments if not segment[0].rank]
        long = _long(together, tokens) if len(together) > 1 else set()
        apart += [together[i] for i in sorted(long)]
        together = [segment for i, segment in enumerate(together) if i not in long]
        return self._dense(together, tokens, device) if together else None, _on(device, apart)

    def _dense(self, segments: Sequence[Segment], tokens: int, device: torch.device) -> Dense:
        needed = {id(adapter): adapter for adapter, _ in segments}
        stack = self._stacked(list(needed.values()))
        place = {id(adapter): i for i, adapter in enumerate(stack.members)}
        owners = torch.full((tokens,), -1)
        for adapter, rows in segments:
            owners[slice(None) if rows is None else rows] = place[id(adapter)]
        single = len(stack.members) == 1
        rows = torch.nonzero(owners >= 0).squeeze(1)
        groups = _groups(owners, rows, stack, _width(segments)) if device.type == "cpu" else None
        idle = tokens - len(rows)  # tokens of the base, and of long stretches
        if idle * stack.rank * _width(segments) <= SEGMENT_COST[device.type]:
            return Dense(stack, None, owners.to(device), single and idle == 0, groups)
        return Dense(stack, rows.to(device), owners[rows].to(device), single, groups)

    def _stacked(self, needed: list[Adapter]) -> Stack:
        """The last stack where it has all of `needed` and not much else, or a new one with what was there before."""
        rank = sum(adapter.rank for adapter in needed)
        last = self._stack
        before = last.members if last is not None else ()
        if last is not None and set(needed) <= set(before) and last.rank <= KEPT * rank:
            return last
        union = [*needed, *(adapter for adapter in before if adapter not in needed)]
        fits = sum(adapter.rank for adapter in union) <= KEPT * rank
        self._stack = made = Stack(tuple(union if fits else needed))
        return made

    def _hook(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor | None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not self._segments:
                return None
            x, out = args[0], output.contiguous()
            self.add(name, x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))
            return out

        return hook


def segments_of(owner: Ids, adapters: Sequence[Adapter | None]) -> Sequence[Segment]:
    """The tokens of each adapter; `owner` (T,) says by id whose each is."""
    present = {id(a): a for a in adapters}
    if set(present.values()) == {None}:
        return ()
    if len(present) == 1:
        return [(a, None) for a in present.values() if a is not None]
    return [(a, torch.from_numpy(np.flatnonzero(owner == key))) for key, a in present.items() if a is not None]


def _on(device: torch.device, segments: Sequence[Segment]) -> list[Segment]:
    return [(adapter, None if rows is None else rows.to(device, non_blocking=True)) for adapter, rows in segments]


def _long(segments: Sequence[Segment], tokens: int) -> set[int]:
    """Which segments cost more among the others' blocks than by themselves."""
    ranks = [adapter.rank for adapter, _ in segments]
    sizes = [tokens if rows is None else len(rows) for _, rows in segments]
    cost = SEGMENT_COST[_layer(segments).down.device.type] / _width(segments)
    found: set[int] = set()
    for i in sorted(range(len(segments)), key=lambda i: -sizes[i]):
        others = sum(ranks) - sum(ranks[j] for j in found) - ranks[i]
        if sizes[i] * others > cost:
            found.add(i)
    return found


def _groups(owners: torch.Tensor, rows: torch.Tensor, stack: Stack, width: int) -> Groups | None:
    """Groups of the tokens `rows` where that saves more than it costs: on CPUs, with many adapters of few tokens."""
    members, owned = len(stack.members), owners[rows]
    most = int(torch.bincount(owned, minlength=members).max())
    if (len(rows) - most) * stack.rank * width <= GROUPED or members * most > 4 * len(rows):
        return None
    order = torch.argsort(owned, stable=True)
    first = torch.searchsorted(owned[order], torch.arange(members))
    places = torch.empty_like(order)
    places[order] = owned[order] * most + torch.arange(len(order)) - first[owned[order]]
    gather = torch.zeros(members * most, dtype=torch.long)
    gather[places] = rows
    return Groups(gather, places, None if len(rows) == len(owners) else rows, owned if most <= FEW else None)


def _layer(segments: Sequence[Segment]) -> Lora:
    """One that stands for all."""
    return next(layer for layer in segments[0][0].layers.values() if isinstance(layer, Lora))


def _width(segments: Sequence[Segment]) -> int:
    layer = _layer(segments)
    return layer.down.shape[1] + layer.up.shape[0]
