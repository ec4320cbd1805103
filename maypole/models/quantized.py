"""Bases held in 8 or 4 bits by bitsandbytes: on the way in, and what nobody may do with them. Knows no other format.

Weights alone are rounded. Products run in the model's own arithmetic by the numbers that the weights stand for, so what
is computed for a token depends neither on its batch mates nor on whether anything is being trained.
"""

import functools
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from maypole.core.errors import ConfigError, MissingExtra, UnsupportedCapability

Quantization = Literal["int8", "nf4"]
"""Whole numbers with one scale a row (as LLM.int8() stores them, arXiv 2208.07339), or 4-bit normal floats with doubly
quantized scales (QLoRA, arXiv 2305.14314)."""

_PARAMETERS: dict[str, Quantization] = {"Int8Params": "int8", "Params4bit": "nf4"}


def check_quantization(wish: str | None, device: torch.device) -> None:
    """An error unless this machine can hold weights as `wish` says and multiply by them on `device`."""
    if wish is None:
        return
    if wish not in get_args(Quantization):
        raise ConfigError("quantization", wish, get_args(Quantization))
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("quant", f"--quantization {wish}")
    reason = _fault(wish, device)
    if reason:
        hint = "another --device, such as cuda, or no --quantization"
        raise UnsupportedCapability(f"bitsandbytes cannot run {wish} on {device.type} here: {reason}", expected=hint)


def settings(wish: str, dtype: torch.dtype) -> Any:
    """transformers' settings for weights that are held as `wish` says and multiplied in `dtype`."""
    from transformers import BitsAndBytesConfig

    if wish == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def multiply_exactly(model: nn.Module) -> None:
    """Have the quantized layers of a model just read multiply by the numbers that they hold, and change none of them.

    bitsandbytes' own 8-bit product rounds activations too, and treats whole columns of a batch by its largest entries.
    Its 4-bit layers lay their owner's weights out anew on some CPUs, with scales rounded to bf16.
    """
    layers: list[Any] = [layer for layer in model.modules() if quantization_of(layer, recurse=False)]
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        else:
            layer.__class__ = _int8_linear()


def quantization_of(module: nn.Module, *, recurse: bool = True) -> Quantization | None:
    """How the weights in `module` are held, None where they are as they were stored."""
    names = (type(parameter).__name__ for parameter in module.parameters(recurse))
    return next((_PARAMETERS[name] for name in names if name in _PARAMETERS), None)


def count(module: nn.Module) -> int:
    """How many numbers the parameters of `module` stand for; four bits lie two to a byte."""
    return sum(p.numel() * (2 if type(p).__name__ == "Params4bit" else 1) for p in module.parameters())


class _Int8Product(torch.autograd.Function):
    """x W^T. x: (..., d_in), W = numbers (d_out, d_in) * scales (d_out,) / 127, which is made anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(numbers, scales)
        ctx.dtype = x.dtype
        return F.linear(x, _weight(numbers, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (numbers, scales) = gradients, ctx.saved_tensors
        return (gradient @ _weight(numbers, scales, gradient.dtype)).to(ctx.dtype), None, None


def _weight(numbers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return numbers.to(dtype) * (scales[:, None] / 127).to(dtype)


@functools.cache
def _int8_linear() -> type[nn.Module]:
    from bitsandbytes.nn import Linear8bitLt

    class Int8Linear(Linear8bitLt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight: Any = self.weight
            out = _Int8Product.apply(x, weight.data, weight.SCB)
            return out if self.bias is None else out + self.bias.to(out.dtype)

    return Int8Linear


@functools.cache
def _fault(wish: str, device: torch.device) -> str:
    """Why a small product fails on `device`, "" where it does not; bitsandbytes only says what it is meant for."""
    try:
        import bitsandbytes as bnb

        layer: Any = (
            bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
            if wish == "int8"
            else bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=True)
        )
        nn.init.eye_(layer.weight)
        layer = layer.to(device).eval()
        multiply_exactly(layer)
        if not torch.allclose(layer(torch.ones(2, 64, device=device)).float().cpu(), torch.ones(2, 64), atol=0.05):
            return "its product is wrong"
    except Exception as error:  # whatever its backends raise: missing libraries, kernels, devices
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
