"""Weights laid out once for oneDNN's matrix products, which on CPUs takes about half the time of a plain product.

The product is the one that torch's own compiler emits; where this build of torch lacks it, or it does not agree with
`F.linear`, nothing is repacked. Knows nothing about models but their linear layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

Product = Callable[[torch.Tensor], torch.Tensor]
"""(..., d_in) -> (..., d_out)"""

_ONE_ROW = 2**20
"""Weights of an fp32 layer below which a single row is multiplied faster as it stands."""


def repack(module: nn.Module, most_bytes: int) -> int:
    """Give linear layers of `module` repacked copies of their weights, `most_bytes` in all; returns how many it took.

    Only the instances' `forward` changes: `module` must be private. Their Parameters stay as they are.
    """
    taken = 0
    layers: list[Any] = [layer for layer in module.modules() if type(layer) in (nn.Linear, Conv1D)]
    for layer in layers:
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
        size = weight.numel() * weight.element_size()
        if taken + size <= most_bytes and (product := repacked(weight, layer.bias)) is not None:
            layer.__dict__["forward"] = product
            taken += size
    return taken


def repacked(weight: torch.Tensor, bias: torch.Tensor | None) -> Product | None:
    """x -> x W^T + b with a copy of `weight` (d_out, d_in) of its own; None where that is not possible or no gain."""
    if weight.device.type != "cpu" or not _agrees(weight.dtype):
        return None
    with torch.no_grad():
        plain, bias = weight.detach(), None if bias is None else bias.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.contiguous(), None)
    small = plain.numel() < _ONE_ROW and plain.dtype == torch.float32
    width = plain.shape[1]

    def product(x: torch.Tensor) -> torch.Tensor:
        if small and x.numel() == width:
            return F.linear(x, plain, bias)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return product


@functools.cache
def _agrees(dtype: torch.dtype) -> bool:
    """Whether this torch has the product and it is right, tried on random numbers."""
    if dtype not in (torch.float32, torch.bfloat16) or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    draw = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((33, 17), (33,)))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        for shape in ((1, 17), (5, 17), (2, 3, 17)):
            x = torch.randn(*shape, generator=draw).to(dtype)
            found = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
            wanted = F.linear(x.double(), weight.double(), bias.double())
            near = 1e-5 if dtype == torch.float32 else 2e-2
            if not torch.allclose(found.double(), wanted, rtol=near, atol=near):
                return False
    except (RuntimeError, AttributeError, TypeError):
        return False
    return True
