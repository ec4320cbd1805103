"""Weights that no process holds whole (FSDP2): split over the processes, gathered a block at a time while it computes.

The split is torch's; here stands what is put together and when. Knows nothing about losses, optimisers or files.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from maypole.models.language_model import LanguageModel
from maypole.train.ranks import Ranks

T = TypeVar("T")

_RUN = "maypole_run_whole"


@contextmanager
def sharded(lm: LanguageModel, ranks: Ranks) -> Iterator[None]:
    """Inside, `lm.model` is a copy of the module with sharded weights, where the launch asks for it.

    The module's own weights are empty meanwhile; afterwards they are what the shards have become. After an error they
    are lost, and with them this process.
    """
    if not ranks.sharded:
        yield
        return
    own = lm.model
    weights = dict(own.named_parameters())
    homes = {name: p.device for name, p in weights.items()}
    lm.model = _sharded_copy(lm, ranks)
    try:
        yield
        for name, shard in lm.model.named_parameters():
            weights[name].data = _full(shard.detach()).to(homes[name])
    finally:
        lm.model = own


def _sharded_copy(lm: LanguageModel, ranks: Ranks) -> nn.Module:
    """Every block is a unit, and what stands around them (embeddings, norm, head) is one: tied weights stay one."""
    weights = list(lm.model.parameters())
    copy: Any = deepcopy(lm.model, {id(p): p for p in weights})
    kinds = set(lm.transformer._no_split_modules or ())
    device = ranks.device.type if ranks.device is not None else "cpu"
    offload = device != "cpu" and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device, (ranks.size,)),
        "offload_policy": fsdp.CPUOffloadPolicy() if offload else fsdp.OffloadPolicy(),
    }
    for block in [m for m in copy.modules() if type(m).__name__ in kinds]:
        fsdp.fully_shard(block, reshard_after_forward=reshard, **options)
    fsdp.fully_shard(copy, **options)
    for module in copy.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses have their denominator already
            module.set_force_sum_reduction_for_comms(True)
    for parameter in weights:
        parameter.data = parameter.data.new_empty(0)
    setattr(copy, _RUN, lambda function, *args: function(copy, *args))
    fsdp.register_fsdp_forward_method(copy, _RUN)
    return copy


def run_whole(function: Callable[..., T], model: nn.Module, *args: Any) -> T:
    """`function(model, *args)`, with the weights around the blocks gathered once for all that it does."""
    run = getattr(model, _RUN, None)
    return function(model, *args) if run is None else run(function, *args)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, of which every process has all, split as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor
    moved = tensor.to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(state: Any) -> Any:
    """Nested dicts and lists with every tensor in them gathered."""
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return _full(state) if isinstance(state, torch.Tensor) else state


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
