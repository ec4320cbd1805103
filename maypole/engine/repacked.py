"""Weights laid out once so that products by them are fast.

On CPUs that is oneDNN's layout, which takes about half the time of a plain product: the product is the one that torch's
own compiler emits; where this build of torch lacks it, or it does not agree with `F.linear`, nothing is repacked. On
GPUs layers of the same input stand side by side, so that one product makes what all of them do. Knows nothing about
models but their linear layers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from maypole.engine.moved_weights import MovedWeights
from maypole.models.products import agrees

Product = Callable[[torch.Tensor], torch.Tensor]
"""(..., d_in) -> (..., d_out)"""

_ONE_ROW = 2**20
"""Weights of an fp32 layer below which a single row is multiplied faster as it stands."""


@dataclass(slots=True)
class Repacker:
    """Makes products from linear layers. `bytes` counts what was repacked so far.

    Copies take up to `most_bytes`, 0 makes none. With `moved` a layer whose weight nobody else needs is moved instead:
    no copy, no limit.
    """

    most_bytes: int
    moved: MovedWeights | None = None
    bytes: int = 0
    _copied: int = 0

    def product(self, *layers: nn.Module) -> Product | None:
        """What `layers` make of the same input, side by side; None where that is not possible or allowed."""
        if any(type(layer) not in (nn.Linear, Conv1D) for layer in layers):
            return None
        weights = [_rows(layer) for layer in layers]
        size = sum(weight.nbytes for weight in weights)
        parameters: list[Any] = [layer.weight for layer in layers]
        moving = self.most_bytes > 0 and self.moved is not None and all(map(self.moved.may_take, parameters))
        if not moving and self._copied + size > self.most_bytes:
            return None
        weight = weights[0] if len(layers) == 1 else torch.cat([w.detach() for w in weights])
        made = repacked(weight, _bias(layers), keep=not moving and len(layers) == 1, several=len(layers) > 1)
        if made is None:
            return None
        self.bytes += size
        if moving and self.moved is not None:
            begin = 0
            for layer, parameter, rows in zip(layers, parameters, weights):
                end = begin + rows.shape[0]
                self.moved.take(parameter, functools.partial(_unpacked, made, slice(begin, end), type(layer) is Conv1D))
                begin = end
        else:
            self._copied += size
        return made

    def repack(self, module: nn.Module) -> None:
        """Let linear layers of `module`, which must be private, multiply by repacked weights, as far as they fit."""
        for layer in module.modules():
            product = self.product(layer)
            if product is not None:
                layer.__dict__["forward"] = product


@dataclass(frozen=True, slots=True, eq=False)
class Repacked:
    """x -> x W^T + b. `plain` is W as it stands where single rows are multiplied faster by it."""

    packed: torch.Tensor
    bias: torch.Tensor | None
    plain: torch.Tensor | None
    width: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain is not None and x.numel() == self.width:
            return F.linear(x, self.plain, self.bias)
        if not self.packed.is_mkldnn:
            return F.linear(x, self.packed, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def repacked(
    weight: torch.Tensor, bias: torch.Tensor | None, *, keep: bool = True, several: bool = False
) -> Repacked | None:
    """A product with a copy of `weight` (d_out, d_in) of its own; None where that is not possible or no gain.

    `keep` says that `weight` stays where it is, so that it may be used as well, `several` that it is of several layers.
    """
    if weight.device.type == "cuda" and several:
        return Repacked(weight.detach(), None if bias is None else bias.detach(), None, weight.shape[1])
    if weight.device.type != "cpu" or not agrees(weight.dtype):
        return None
    with torch.no_grad():
        plain, bias = weight.detach(), None if bias is None else bias.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.contiguous(), None)
    small = keep and plain.numel() < _ONE_ROW and plain.dtype == torch.float32
    return Repacked(packed, bias, plain if small else None, plain.shape[1])


def _rows(layer: Any) -> torch.Tensor:
    """(d_out, d_in)"""
    return layer.weight.t() if isinstance(layer, Conv1D) else layer.weight


def _bias(layers: Any) -> torch.Tensor | None:
    """(d_out,) of all layers; zeros where only some have one."""
    if all(layer.bias is None for layer in layers):
        return None
    if len(layers) == 1:
        return layers[0].bias
    found = [layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([bias.detach() for bias in found])


def _unpacked(product: Repacked, rows: slice, transposed: bool) -> torch.Tensor:
    weight = product.packed.to_dense()[rows]
    return (weight.t() if transposed else weight).contiguous()
