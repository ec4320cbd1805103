"""Parameters whose values have moved into an engine's own layout: the module they came from still tells them.

A moved Parameter keeps its shape and dtype but no memory (it is on the "meta" device, where computing with it is an
error); `state_dict()` reads the values from where they went, and all may be put back. Knows nothing about layouts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from maypole.core.errors import UserError

Value = Callable[[], torch.Tensor]


class MovedWeights:
    """What has moved out of `owner`, and out of `copies` of its module structure that share its Parameters."""

    def __init__(self, owner: nn.Module, *copies: nn.Module) -> None:
        self._own = {id(module) for module in owner.modules()}
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in [*owner.modules(), *(m for copy in copies for m in copy.modules())]:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._places.setdefault(id(parameter), []).append((module, name))
        self._taken: list[tuple[list[tuple[nn.Module, str]], bool, Value]] = []
        self._hooks: list[Any] = []

    def may_take(self, parameter: nn.Parameter) -> bool:
        """Whether one place of the owner alone holds it; a weight that is tied is needed as it stands."""
        return sum(id(module) in self._own for module, _ in self._places.get(id(parameter), ())) == 1

    def take(self, parameter: nn.Parameter, value: Value) -> None:
        """Leave a shape in the place of `parameter`; `value` makes it again."""
        places = self._places.pop(id(parameter))
        shape = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for module, name in places:
            module._parameters[name] = shape
            if id(module) in self._own:
                self._hooks.append(module.register_state_dict_post_hook(_telling(name, value)))
        self._taken.append((places, parameter.requires_grad, value))

    def give_back(self) -> None:
        """Every Parameter again in its place."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        while self._taken:
            places, trainable, value = self._taken.pop()
            parameter = nn.Parameter(value(), requires_grad=trainable)
            for module, name in places:
                module._parameters[name] = parameter


def check_at_home(model: nn.Module, where: str) -> None:
    """UserError where the weights of `model` have moved into an engine."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UserError("the weights of this model have moved into an engine", where, "a model loaded for this use")


def _telling(name: str, value: Value) -> Callable[..., None]:
    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state[f"{prefix}{name}"] = value()

    return hook
