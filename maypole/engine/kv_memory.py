"""All keys and values that an engine holds: rows of running sequences by length, and prefixes; inside one budget.

A row of a length class is contiguous, and the rows in use are the first ones, so a step reads a plain view of them; on
CPUs that is several times faster than gathering pages. A sequence that outgrows its class moves to the next. Knows
nothing about requests.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from maypole.engine.prefix_cache import Node, PrefixCache, Tensors

SHORTEST = 64
"""Tokens of the shortest class; each class is twice as long as the one before."""


class Holder(Protocol):
    """Who has keys and values: tokens 0 to `base` in the chain of `node`, `base` to `held` in a row."""

    base: int
    held: int
    node: Node | None
    slots: "Slots | None"
    row: int


@dataclass(slots=True, eq=False)
class Slots:
    """Rows of one length. Layers hold keys and values (rows, kv_heads, length, d); row i is that of `members[i]`."""

    length: int
    rows: int = 0
    members: list[Holder] = field(default_factory=list)
    layers: Tensors = field(default_factory=dict)


class KVMemory:
    """Rows and prefixes inside `max_bytes`. `shapes` maps each layer to (kv_heads, d_key, d_value)."""

    def __init__(
        self, shapes: Mapping[int, tuple[int, int, int]], dtype: torch.dtype, device: torch.device, max_bytes: int
    ) -> None:
        self.shapes, self.dtype, self.device, self.max_bytes = dict(shapes), dtype, device, max_bytes
        self.pools: dict[int, Slots] = {}
        self.prefixes = PrefixCache()

    @property
    def bytes_per_token(self) -> int:
        """Of all layers."""
        return sum(heads * (dk + dv) for heads, dk, dv in self.shapes.values()) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Allocated now."""
        rows = sum(slots.rows * slots.length for slots in self.pools.values())
        return (rows + self.prefixes.tokens) * self.bytes_per_token

    def fits_alone(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens could be held if there were no other."""
        return tokens * self.bytes_per_token <= self.max_bytes

    def length_for(self, tokens: int) -> int:
        """The length of the class that holds `tokens`; exactly `tokens` where a whole class would burst the budget."""
        length = SHORTEST
        while length < tokens:
            length *= 2
        return length if self.fits_alone(length) else tokens

    def place(self, holder: Holder, tokens: int, others: int = 0) -> bool:
        """Give `holder` a row for `tokens`; False, and nothing changed, where there is no room for one.

        So many `others` are about to come to the same class.
        """
        length = self.length_for(tokens)
        slots = self.pools.setdefault(length, Slots(length))
        if len(slots.members) == slots.rows and not self._enlarge(slots, others):
            if not slots.members:
                self._forget(slots)
            return False
        holder.slots, holder.row = slots, len(slots.members)
        slots.members.append(holder)
        return True

    def grow(self, holder: Holder, tokens: int) -> bool:
        """See that the row of `holder` holds `tokens`; False, and nothing changed, where there is no room."""
        return tokens <= _slots(holder).length or self._move(holder, tokens)

    def release(self, holder: Holder) -> None:
        """Take the row and the prefix of `holder` away."""
        self._leave(_slots(holder), holder.row)
        holder.slots, holder.row = None, -1
        self._attach(holder, None)
        holder.base = holder.held = 0

    def begin_at(self, holder: Holder, node: Node | None) -> None:
        """`holder`, which has nothing yet, starts after the tokens of `node`."""
        self._attach(holder, node)
        holder.base = holder.held = 0 if node is None else node.end

    def bring(self, holder: Holder, node: Node) -> None:
        """Copy what `node` and the runs before it hold after the base of `holder` into its row, which is empty."""
        layers = _slots(holder).layers
        for run in node.chain():
            if run.end <= holder.base:
                break
            at = slice(run.start - holder.base, run.end - holder.base)
            for n, tensors in layers.items():
                for own, known in zip(tensors, run.layers[n]):
                    own[holder.row, :, at] = known
        holder.held = node.end

    def lean(self, holder: Holder, node: Node, tokens: int) -> None:
        """Let `holder` read from `node` what it has in its row too; its row is for the `tokens` after that from now."""
        slots, row, held = _slots(holder), holder.row, holder.held - node.end
        begin = node.end - holder.base
        self._attach(holder, node)  # before anything could make way for the new row
        if self.length_for(tokens) < slots.length and self.place(holder, tokens):
            for n, tensors in _slots(holder).layers.items():
                for new, given in zip(tensors, slots.layers[n]):
                    new[holder.row, :, :held] = given[row, :, begin : begin + held]
            self._leave(slots, row)
        else:
            for tensor in itertools.chain.from_iterable(slots.layers.values()):
                tensor[row, :, :held] = tensor[row, :, begin : begin + held].clone()
        holder.base = node.end

    def copy_of(self, holder: Holder, begin: int, end: int) -> Tensors:
        """Keys and values (kv_heads, end - begin, d) of tokens that stand in the row of `holder`."""
        at = slice(begin - holder.base, end - holder.base)
        layers = _slots(holder).layers
        return {n: (k[holder.row, :, at].clone(), v[holder.row, :, at].clone()) for n, (k, v) in layers.items()}

    def spare(self, tokens: int) -> bool:
        """Whether a row for `tokens` fits without anything making way."""
        return self.bytes + self.length_for(tokens) * self.bytes_per_token <= self.max_bytes

    def room(self, size: int) -> bool:
        """Whether `size` more bytes fit; what nobody uses makes way, the least lately used first."""
        while self.bytes + size > self.max_bytes:
            if not self.prefixes.evict() and not self._trim():
                return False
        return True

    def room_beside(self, node: Node | None, tokens: int) -> bool:
        """Whether `tokens` more fit without `node` making way for them."""
        if node is None:
            return self.room(tokens * self.bytes_per_token)
        with kept(node):
            return self.room(tokens * self.bytes_per_token)

    def free(self) -> None:
        """Give all memory back; nobody may run."""
        self.pools.clear()
        self.prefixes = PrefixCache()

    def _attach(self, holder: Holder, node: Node | None) -> None:
        if holder.node is not None:
            holder.node.users -= 1
        if node is not None:
            node.users += 1
        holder.node = node

    def _move(self, holder: Holder, tokens: int) -> bool:
        """Another row for `holder`, with what its row holds; who has filled a row of the same class comes along.

        Answers that began together outgrow their class together: one by one the last row would fill every gap.
        """
        old = _slots(holder)
        full = [m for m in old.members if m is not holder and m.held - m.base == old.length < tokens]
        left: list[int] = []
        for i, member in enumerate((holder, *full)):
            row, held = member.row, member.held - member.base
            if not self.place(member, tokens, len(full) - i):
                break
            for n, tensors in _slots(member).layers.items():
                for new, given in zip(tensors, old.layers[n]):
                    new[member.row, :, :held] = given[row, :, :held]
            left.append(row)
        for row in sorted(left, reverse=True):
            self._leave(old, row)
        return bool(left)

    def _leave(self, slots: Slots, row: int) -> None:
        """The last row takes the place of the one that is left."""
        last = slots.members.pop()
        if row < len(slots.members):
            held = last.held - last.base
            for keys, values in slots.layers.values():
                keys[row, :, :held] = keys[last.row, :, :held]
                values[row, :, :held] = values[last.row, :, :held]
            slots.members[row], last.row = last, row
        if not slots.members:
            self._forget(slots)

    def _enlarge(self, slots: Slots, others: int) -> bool:
        """Twice the rows, or enough for so many `others` too, where they are free, or one more where what nobody uses
        makes way for it."""
        per_row = slots.length * self.bytes_per_token
        twice = max(2 * slots.rows, slots.rows + 1 + others)
        if self.bytes + (twice - slots.rows) * per_row <= self.max_bytes:
            self._resize(slots, twice)
            return True
        if self.room(per_row):
            self._resize(slots, slots.rows + 1)
            return True
        return False

    def _resize(self, slots: Slots, rows: int) -> None:
        kept = len(slots.members)
        held = max((m.held - m.base for m in slots.members), default=0)
        for n, (heads, dk, dv) in self.shapes.items():
            # Zeros, not empty: a masked NaN would still spoil the sum of values.
            new = [_zeros((rows, heads, slots.length, d), self.dtype, self.device) for d in (dk, dv)]
            if held:
                for target, source in zip(new, slots.layers[n]):
                    target[:kept, :, :held] = source[:kept, :, :held]
            slots.layers[n] = (new[0], new[1])
        slots.rows = rows

    def _trim(self) -> bool:
        """Give back the rows of one class that nobody is in; False where there are none."""
        for slots in self.pools.values():
            if slots.rows > len(slots.members) > 0:
                self._resize(slots, len(slots.members))
                return True
        return False

    def _forget(self, slots: Slots) -> None:
        del self.pools[slots.length]
        slots.rows, slots.layers = 0, {}


@contextmanager
def kept(node: Node) -> Iterator[None]:
    """`node` makes way for nothing inside."""
    node.users += 1
    try:
        yield
    finally:
        node.users -= 1


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On CPUs of pages that the system hands out as they are written to, so that rows cost nothing before that."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _slots(holder: Holder) -> Slots:
    assert holder.slots is not None
    return holder.slots
