"""One adapter made of several, for the requests that ask for it; nothing is written and no base is touched.

"cat" sets the factors side by side: the sum of w_i dW_i, exact, at the sum of the ranks. The other combinations work on
A and on B apart, as peft's `add_weighted_adapter` does, which is rougher: (sum of sqrt(w_i s_i) A_i) times (sum of
sqrt(w_i s_i) B_i) holds cross terms. Random ones draw from a seed. Knows nothing about requests and files.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from peft.utils import merge_utils

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.core.seeds import derive
from maypole.engine.adapter_entry import Entry
from maypole.engine.adapter_files import STACKED, Base
from maypole.engine.adapter_reading import Reader
from maypole.engine.adapters import Adapter, Lora
from maypole.engine.request import Merged


@dataclass(frozen=True, slots=True)
class Size:
    """What an adapter in memory needs, or a merged one will."""

    rank: int
    bytes: int
    cost: int
    config: None = None


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The source of a merged adapter: those that it is made of, as `entry` knows them by name (None: not at all).

    What is not in memory is read for the merge alone.
    """

    wanted: Merged
    entry: Callable[[str], Entry | None]
    reader: Reader

    def stamp(self) -> Hashable:
        every = [self.entry(name) for name in self.wanted.adapters]
        return tuple(e and (e.key if e.source is None else e.source.stamp()) for e in every)

    def inspect(self, base: Base, where: str) -> Size:
        every = [self._size(name, where) for name in self.wanted.adapters]
        whole = sum if self.wanted.combination == "cat" else max
        return Size(whole(s.rank for s in every), whole(s.bytes for s in every), whole(s.cost for s in every))

    def read(self, found: Size, name: str, base: Base, where: str) -> Adapter:
        return merge(self.wanted, [self._part(name, where) for name in self.wanted.adapters], where)

    def _size(self, name: str, where: str) -> Size:
        entry, adapter = self._there(name, where)
        if adapter is None:
            found = entry.found or self.reader.check(entry).found
            return Size(found.rank, found.bytes, found.cost)
        numbers = sum(t.numel() for layer in adapter.layers.values() for t in layer.tensors.values())
        return Size(adapter.rank, adapter.bytes, adapter.bytes + STACKED * numbers)

    def _part(self, name: str, where: str) -> Adapter:
        """In the host's memory."""
        entry, adapter = self._there(name, where)
        if adapter is None:
            return self.reader.read(entry, self.reader.check(entry).found).host
        return adapter.to(torch.device("cpu"))

    def _there(self, name: str, where: str) -> tuple[Entry, Adapter | None]:
        entry = self.entry(name)
        if entry is None:
            raise UserError(f"there is no adapter {name!r} any more", where, "see which adapters there are")
        return entry, entry.host or entry.adapter


def merge(wanted: Merged, parts: Sequence[Adapter], where: str) -> Adapter:
    """The adapter that `wanted` asks for, of `parts` in the order of its names.

    UnsupportedCapability where one is more than LoRA, UserError where the combination needs equal ranks.
    """
    for name, part in zip(wanted.adapters, parts):
        if not part.rank or part.heads:
            raise UnsupportedCapability(f"adapter {name!r} cannot be merged", f"{where}: adapters", "LoRA and no more")
    layers: dict[str, Lora] = {}
    for module in sorted({module for part in parts for module in part.layers}):
        present = [(part.layers[module], w) for part, w in zip(parts, wanted.weights or ()) if module in part.layers]
        loras = [layer for layer, _ in present if isinstance(layer, Lora)]
        weights = [w for _, w in present]
        if wanted.combination == "cat":
            layers[module] = _side_by_side(loras, weights)
            continue
        ranks = sorted({lora.down.shape[0] for lora in loras})
        if len(ranks) > 1:
            what = f"{wanted.combination!r} needs equal ranks, and {module} has {', '.join(map(str, ranks))}"
            raise UserError(what, f"{where}: combination", '"cat", which takes any')
        layers[module] = _combined(loras, weights, wanted, derive(wanted.seed, module))
    key: Hashable = (wanted, tuple(part.key for part in parts))
    return Adapter(str(wanted), None, layers, {}, key)


def _side_by_side(loras: Sequence[Lora], weights: Sequence[float]) -> Lora:
    down = torch.cat([lora.down for lora in loras])
    up = torch.cat([lora.up * w for lora, w in zip(loras, weights)], dim=1)
    return Lora(down, up, _bias(loras, weights))


def _combined(loras: Sequence[Lora], weights: Sequence[float], wanted: Merged, seed: int) -> Lora:
    """The root of each weight on both sides, its sign on one; `up` has its scaling in it and B has not."""
    roots = [math.sqrt(abs(w * lora.scaling)) for lora, w in zip(loras, weights)]
    signed = [math.copysign(root, w * lora.scaling) for root, lora, w in zip(roots, loras, weights)]
    down = _task([lora.down for lora in loras], signed, wanted, derive(seed, "A"))
    up = _task([lora.up / (lora.scaling or 1.0) for lora in loras], roots, wanted, derive(seed, "B"))
    return Lora(down, up, _bias(loras, weights))


def _task(tensors: Sequence[torch.Tensor], weights: Sequence[float], wanted: Merged, seed: int) -> torch.Tensor:
    """Tensors of one shape -> their combination: pruned, weighted, then summed or, for "ties", by elected sign."""
    dtype = tensors[0].dtype
    stacked = torch.stack([tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in tensors])
    if wanted.density < 1.0:
        stacked = _pruned(stacked, wanted, seed)
    weighted = stacked * stacked.new_tensor(weights).view(-1, 1, 1)
    if not wanted.combination.endswith("ties"):
        return weighted.sum(dim=0).to(dtype)
    mask = merge_utils.calculate_majority_sign_mask(stacked, wanted.majority_sign_method)
    return merge_utils.disjoint_merge(weighted, mask).to(dtype)


def _pruned(stacked: torch.Tensor, wanted: Merged, seed: int) -> torch.Tensor:
    """The largest of each tensor, or for "dare" drawn ones, scaled so that the expectation stays.

    peft draws them from the generator that everybody shares; here whoever asks again gets the same.
    """
    if wanted.combination == "ties":
        return torch.stack([merge_utils.magnitude_based_pruning(tensor, wanted.density) for tensor in stacked])
    drawn = torch.rand(stacked.shape, generator=torch.Generator().manual_seed(seed)).to(stacked.device)
    return stacked * (drawn < wanted.density) / wanted.density


def _bias(loras: Sequence[Lora], weights: Sequence[float]) -> torch.Tensor | None:
    """Biases add up as the adapters' contributions do."""
    found = [lora.bias * w for lora, w in zip(loras, weights) if lora.bias is not None]
    return torch.stack(found).sum(dim=0) if found else None
