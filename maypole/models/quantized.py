"""Bases held in 8 or 4 bits by bitsandbytes: on the way in, and what nobody may do with them. Knows no other format."""

import functools
import logging
import warnings
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn

from maypole.core.errors import ConfigError, MissingExtra, UnsupportedCapability

Quantization = Literal["int8", "nf4"]
"""LLM.int8() (arXiv 2208.07339), or 4-bit normal floats with doubly quantized scales (QLoRA, arXiv 2305.14314)."""

_PARAMETERS = {"Int8Params": "int8", "Params4bit": "nf4"}


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
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_rounding_is_known)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_as_read(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights on CPUs as they are: on some it would lay them out anew in the owner's
    parameters at the first forward, with their scales rounded to bf16, and multiply in bf16 whatever was asked for."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # pyright: ignore[reportAttributeAccessIssue]


def quantization_of(module: nn.Module) -> Quantization | None:
    """How the weights in `module` are held, None where they are as they were stored."""
    for parameter in module.parameters():
        kind = _PARAMETERS.get(type(parameter).__name__)
        if kind is not None:
            return "int8" if kind == "int8" else "nf4"
    return None


def _rounding_is_known(record: logging.LogRecord) -> bool:
    """False for what is said at every product of 8-bit weights: that inputs are rounded to fp16 first."""
    return "inputs will be cast" not in str(record.msg)


@functools.cache
def _fault(wish: str, device: torch.device) -> str:
    """Why a small product fails on `device`, "" where it does not; bitsandbytes only says what it is meant for."""
    try:
        import bitsandbytes as bnb

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer: Any = (
                bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
                if wish == "int8"
                else bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=True)
            )
            nn.init.eye_(layer.weight)
            found = layer.to(device)(torch.ones(2, 64, device=device))
        if not torch.allclose(found.float(), torch.ones_like(found.float()), atol=0.05):
            return "its product is wrong"
    except Exception as error:  # whatever its backends raise: missing libraries, kernels, devices
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
