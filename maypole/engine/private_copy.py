"""A model's module structure copied, its Parameters shared: what an engine switches and hooks, its owner never sees.

Knows nothing about requests.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from maypole.core.errors import UserError
from maypole.models.attention import causal_lm, configs

_HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks") or "_hooks_" in name)
_STRANGE = ("forward", "_old_forward", "_hf_hook", "_output_capturing_hooks_installed")
"""What other libraries leave in a module's dictionary and what would lead back to the original."""


def private_copy(model: nn.Module, replaced: Mapping[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The transformers model inside `model`, in eval mode, without PEFT's layers, hooks or training state.

    Every Parameter and buffer is the owner's own object, except those that `replaced` names (state dict names) with
    tensors of their own. Configs are copies and submodules point to them.
    """
    inner = causal_lm(model)
    memo: dict[int, Any] = {}
    swaps = {} if replaced is None else _swaps(inner, replaced)
    made: PreTrainedModel = _copy(inner, {}, memo, swaps)
    for config in configs(made):
        plain = config.__dict__.pop("_maypole_plain", None)
        config.__dict__.pop("_maypole_strict", None)
        if plain is not None:  # the owner is in packed execution at this moment
            config._attn_implementation = plain
    return made


def _copy(module: nn.Module, done: dict[int, Any], memo: dict[int, Any], swaps: dict[int, torch.Tensor]) -> Any:
    if isinstance(module, BaseTunerLayer):
        if module.merged:
            raise UserError("an adapter is merged into these weights for the moment", expected="unmerge it first")
        return _copy(module.get_base_layer(), done, memo, swaps)
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _copy(module.original_module, done, memo, swaps)
    if id(module) in done:
        return done[id(module)]
    new: Any = object.__new__(type(module))
    done[id(module)] = new
    state = {k: v for k, v in module.__dict__.items() if k not in _STRANGE}
    for name, value in state.items():
        if isinstance(value, PretrainedConfig):
            state[name] = copy.deepcopy(value, memo)
        elif name in _HOOKS:
            state[name] = type(value)() if isinstance(value, dict | set) else value
    children = module.__dict__["_modules"]
    state["_parameters"] = _swapped(module.__dict__["_parameters"], swaps)
    state["_buffers"] = _swapped(module.__dict__["_buffers"], swaps)
    state["_modules"] = OrderedDict(
        (n, None if child is None else _copy(child, done, memo, swaps)) for n, child in children.items()
    )
    state["training"] = False
    new.__dict__.update(state)
    return new


def _swapped(tensors: Mapping[str, Any], swaps: dict[int, torch.Tensor]) -> dict[str, Any]:
    return {name: swaps.get(id(tensor), tensor) for name, tensor in tensors.items()}


def overwrite(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of a state dict into the Parameters and buffers of `model`; UserError if one does not fit."""
    for target, tensor in _matched(causal_lm(model), state):
        target.data.copy_(tensor)


def _swaps(model: PreTrainedModel, replaced: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """id of the owner's Parameter or buffer -> what stands in its place; tied tensors are replaced together."""
    swaps: dict[int, torch.Tensor] = {}
    for target, tensor in _matched(model, replaced):
        copied = tensor.detach().to(target.device, target.dtype, copy=True)
        swaps[id(target)] = nn.Parameter(copied, requires_grad=False) if isinstance(target, nn.Parameter) else copied
    return swaps


def _matched(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(the model's own tensor, the one of that name in `state`)."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own: dict[str, torch.Tensor] = {_plain_name(name): tensor for name, tensor in named}
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name, tensor in state.items():
        target = own.get(_plain_name(name))
        if target is None:
            raise UserError(f"the state dict has {name!r}, which the model lacks", expected="names of its state_dict()")
        if target.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the model {tuple(target.shape)}"
            raise UserError(f"the state dict has {name!r} as {shapes}", expected="weights of the same architecture")
        found.append((target, tensor))
    return found


def _plain_name(name: str) -> str:
    """The name of a weight without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
