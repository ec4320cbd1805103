"""RMS norms in fp32 on CPUs, in fewer passes over memory than transformers' own take, forward and backward.

A module is served where what it makes of random numbers is x / rms(x) times its weight, or one more than its weight
(Gemma). Knows nothing about models but their norms.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maypole.models.instead import forwards


@contextmanager
def fast_norms(model: nn.Module) -> Iterator[None]:
    """The RMS norms of `model` that are in fp32 on a CPU run in fewer passes inside."""
    norms: list[Any] = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    kinds = {type(norm): norm for norm in norms if _epsilon(norm) is not None}
    offsets = {kind: _offset(norm) for kind, norm in kinds.items()}
    chosen = [(norm, offset) for norm in norms if (offset := offsets.get(type(norm))) is not None]
    with forwards({norm: functools.partial(_forward, norm, offset) for norm, offset in chosen}):
        yield


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@torch.no_grad()
def _offset(norm: Any) -> float | None:
    """What the class of `norm` adds to its weight, tried on random numbers; None where it does something else."""
    if list(norm._parameters) != ["weight"] or norm._modules or norm._buffers:
        return None
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=draw) * torch.tensor([[1e-3], [1.0], [9.0]])
    alike: Any = object.__new__(type(norm))
    vars(alike).update(vars(norm), _parameters={"weight": nn.Parameter(torch.randn(8, generator=draw))})
    theirs = type(norm).forward(alike, x)
    ours = ((offset, _forward(alike, offset, x)) for offset in (0.0, 1.0))
    return next((offset for offset, found in ours if torch.allclose(found, theirs, rtol=1e-5)), None)


def _forward(norm: Any, offset: float, x: torch.Tensor) -> torch.Tensor:
    """What `norm` makes of x: (…, d) -> (…, d)."""
    if not (x.dtype == norm.weight.dtype == torch.float32 and x.device.type == norm.weight.device.type == "cpu"):
        return type(norm).forward(norm, x)
    weight = norm.weight + offset if offset else norm.weight
    found: Any = _RMSNorm.apply(x, weight, _epsilon(norm))
    return found


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension. x: (…, d), weight: (d,)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        normed, inverse, weight = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        along = upstream * normed
        dx = None
        if wants_x:
            with torch.autocast("cpu", enabled=False):
                mean = (along @ weight).div_(weight.shape[0]).unsqueeze(-1)
            dx = (upstream * weight).addcmul_(normed, mean, value=-1.0).mul_(inverse)
        return dx, along.flatten(0, -2).sum(0) if wants_weight else None, None
