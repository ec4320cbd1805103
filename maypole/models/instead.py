"""Modules that compute the same in another way for a while. Knows nothing about what they compute."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Each module runs the forward given for it inside, but one that has a forward of its own keeps that."""
    chosen = {module: forward for module, forward in instead.items() if "forward" not in vars(module)}
    for module, forward in chosen.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in chosen:
            del vars(module)["forward"]
