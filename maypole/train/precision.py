"""fp32 masters with bf16 arithmetic where the hardware has it. Knows nothing about losses or data."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from peft import PeftModel
from torch import nn

from maypole.core.errors import ConfigError
from maypole.models.loading import cpu_has_bf16

Arithmetic = Literal["bf16", "fp32"]

# Every number of packed tokens is a new shape, and about 0.7 MB of code are kept for each matrix product of each shape:
# 1,024 by oneDNN and as many again by what torch puts before it, unless told otherwise before the first product. A step
# uses about 60, one after the other. The code lies between the arrays of the steps, and the holes that are left fit few
# of the next ones: with 1,024 of the latter a run of hundreds of steps took 2.3 GB instead of 1.5, and was no faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
KEPT_CODE_BYTES = 64 * 700_000
"""What such a cache holds when it is full."""


def has_bf16(device: torch.device) -> bool:
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()


def decide(wish: str, device: torch.device) -> Arithmetic:
    """The arithmetic of a run: "auto" is bf16 where the hardware multiplies it; a wish it cannot meet is an error."""
    if wish == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if wish == "bf16" and not has_bf16(device):
        raise ConfigError("precision", wish, ("auto", "fp32 (this device has no bf16 instructions)"))
    return "bf16" if wish == "bf16" else "fp32"


def autocast(arithmetic: Arithmetic, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if arithmetic == "bf16" else nullcontext()


@contextmanager
def masters(model: nn.Module, arithmetic: Arithmetic, stored: torch.dtype) -> Iterator[None]:
    """Trainable parameters are fp32 inside (all parameters, in fp32 arithmetic) and as they were afterwards.

    Weights that a file holds in the lower precision `stored` are rounded to it at the end, so that what is in memory
    after training is what loading the result would give. Adapters are stored as they are held.
    """
    before = {name: p.dtype for name, p in model.named_parameters()}
    whole = not isinstance(model, PeftModel)
    wide = [p for p in model.parameters() if p.requires_grad or arithmetic == "fp32"]
    for parameter in wide:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            if whole and stored.itemsize < parameter.element_size():
                parameter.data = parameter.data.to(stored)
            if parameter.dtype != before[name]:
                parameter.data = parameter.data.to(before[name])
