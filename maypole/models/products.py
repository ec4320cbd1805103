"""Matrix products in fp32 by oneDNN on CPUs, where torch would ask MKL.

MKL does not use all of the vectors of every CPU: oneDNN is twice as fast on some and as fast on the others. The op is
the one that torch's own compiler emits; where this build of torch lacks it, or it does not agree with `F.linear`,
torch's choice stands. Knows nothing about models but their linear layers.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from maypole.models.instead import forwards

_WORTH = 2**14
"""Numbers of a weight from which on oneDNN's own preparations are paid for; rows do not count, so that the numbers of
a row do not depend on how many there are."""


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """The linear layers of `model` that are in fp32 on a CPU multiply by oneDNN inside, forward and backward."""
    layers: list[Any] = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)]
    chosen = [m for m in layers if m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"]
    with forwards({layer: functools.partial(_forward, layer) for layer in chosen}):
        yield


def product(x: torch.Tensor, weight: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
    """x weight^T without a gradient, in `room` where there is some and the product can be written there.

    x: (n, d_in), weight: (d_out, d_in) -> (n, d_out).
    """
    return _by_onednn(x, weight, None) if _serves(x, weight) else torch.mm(x, weight.t(), out=room)


def _serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.numel() >= _WORTH
        and type(weight) in (torch.Tensor, nn.Parameter)
        and agrees(torch.float32)
    )


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What `layer` makes of x: (…, d_in) -> (…, d_out)."""
    weight, bias = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight, layer.bias
    if torch.is_autocast_enabled("cpu") or not _serves(x, weight):
        return type(layer).forward(layer, x)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        found: Any = _Linear.apply(x, weight, bias)
        return found
    return _by_onednn(x, weight, bias)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """x W^T + b. x: (…, d_in), weight: (d_out, d_in), bias: (d_out,)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        upstream = upstream.reshape(-1, upstream.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(upstream, weight.t()).view_as(x) if wants_x else None,
            _weight_gradient(upstream, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            upstream.sum(0) if wants_bias else None,
        )


def _weight_gradient(upstream: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """upstream^T x, (d_out, d_in), or its transpose turned round: what has fewer rows is laid out anew in less time."""
    if upstream.shape[1] > x.shape[1]:
        return product(x.t(), upstream.t()).t()
    return product(upstream.t(), x.t())


@functools.cache
def agrees(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's product and it is right, tried on random numbers, as they stand and repacked."""
    if dtype not in (torch.float32, torch.bfloat16) or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    draw = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((33, 17), (33,)))
    near = 1e-5 if dtype == torch.float32 else 2e-2
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        for shape in ((1, 17), (5, 17), (2, 3, 17)):
            x = torch.randn(*shape, generator=draw).to(dtype)
            wanted = F.linear(x.double(), weight.double(), bias.double())
            for held in (packed, weight, weight.t().contiguous().t()):
                found = _by_onednn(x, held, bias)
                if not torch.allclose(found.double(), wanted, rtol=near, atol=near):
                    return False
    except (RuntimeError, AttributeError, TypeError):
        return False
    return True
