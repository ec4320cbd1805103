"""Adapters as tensors beside the model: copied when they come, applied per segment of tokens in the linear layers.

So any number of them run in one batch, and replacing one disturbs no other. LoRA is computed here, other types by the
`apply` of their PeftMethod. Knows nothing about requests.
"""

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.models.adapters import ENTRY_POINTS, PeftMethod, adapter_config, config_class

Contribution = Callable[[torch.Tensor], torch.Tensor]
"""(tokens, d_in) -> (tokens, d_out), to be added to a linear layer's output."""

_FUSING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that change the base weights, which a directory alone does not tell."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter's tensors by module name. `heads` holds whole replacements of a score head's weights."""

    name: str
    config: Any
    layers: Mapping[str, Contribution]
    heads: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """scaling * B (A x) (arXiv 2106.09685). down: (r, d_in), up: (d_out, r)."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    scaling: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        inner = x.to(self.down.dtype) @ self.down.t()
        out = inner @ self.up.t()
        return (out if self.bias is None else out + self.bias) * self.scaling


def from_model(model: Any, name: str, into: nn.Module) -> Adapter:
    """Adapter `name` of a live PEFT model, copied; `into` is the engine's module."""
    if name not in model.peft_config:
        raise UserError(f"no adapter {name!r}", expected=f"adapters: {', '.join(model.peft_config)}")
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return from_tensors(name, model.peft_config[name], tensors, into)


def from_directory(path: str | Path, name: str, into: nn.Module) -> Adapter:
    """The adapter that a PEFT directory holds, for a model whose modules are `into`'s."""
    directory = Path(path)
    config_class(str(adapter_config(directory).get("peft_type", "lora")))
    config = peft.PeftConfig.from_pretrained(str(directory))
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(_FUSING_STARTS):
        raise UnsupportedCapability(f"an adapter begun by {start!r} changed its base", str(path), "a merged model")
    return from_tensors(name, config, load_file(str(directory / "adapter_model.safetensors")), into, str(path))


def from_tensors(
    name: str, config: Any, tensors: Mapping[str, torch.Tensor], into: nn.Module, where: str = ""
) -> Adapter:
    """An adapter from tensors named as PEFT saves them; UserError where they do not fit the modules of `into`."""
    modules = dict(into.named_modules())
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    heads: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        full = key.removeprefix("base_model.model.")
        parts = full.split(".")
        cut = next((n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in modules), 0)
        module, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
        if not cut:
            raise UserError(f"the adapter changes {full!r}, which the model lacks", where, "an adapter of this model")
        copied = tensor.detach().to(_device(into), copy=True)
        if rest in ("weight", "bias"):
            if module != "score":
                raise UnsupportedCapability(f"the adapter replaces {module!r} as a whole", where, "merge it first")
            heads[full] = copied
        else:
            grouped.setdefault(module, {})[rest] = copied
    make = _lora if _type(config) == "lora" else _other(config)
    layers = {module: make(module, parts, config, where) for module, parts in grouped.items()}
    for module in layers:
        _check_layer(module, modules[module], into, where)
    return Adapter(name, config, layers, heads)


def _check_layer(name: str, module: nn.Module, into: Any, where: str) -> None:
    if isinstance(module, nn.Embedding) or module is into.get_output_embeddings():
        raise UnsupportedCapability(f"the adapter changes {name!r}, embeddings or head", where, "merge it first")


def _lora(module: str, parts: Mapping[str, torch.Tensor], config: Any, where: str) -> Contribution:
    strange = sorted(set(parts) - {"lora_A.weight", "lora_B.weight", "lora_B.bias"})
    if strange or getattr(config, "use_dora", False) or getattr(config, "alora_invocation_tokens", None):
        kind = strange[0] if strange else "use_dora" if config.use_dora else "alora"
        raise UnsupportedCapability(f"LoRA with {kind} cannot share a batch", where, "merge it into its base first")
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    rank = down.shape[0]
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    return Lora(down, up, parts.get("lora_B.bias"), scaling)


def _other(config: Any) -> Callable[..., Contribution]:
    kind = _type(config)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name.lower() == kind:
            return partial(_through, entry.load())
    raise UnsupportedCapability(f"adapters of type {kind!r} cannot share a batch", expected="merge it into its base")


def _through(method: PeftMethod, module: str, parts: dict[str, torch.Tensor], config: Any, where: str) -> Contribution:
    return lambda x: method.apply(x, parts, config)


def _type(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class Lanes:
    """The hooks in an engine's private module: during a forward, each segment of tokens has one adapter or none.

    `segments` are (adapter, rows): indices (n,) of the packed tokens, None for all of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        self._hooked: set[str] = set()
        self.segments: Sequence[tuple[Adapter, torch.Tensor | None]] = ()

    def prepare(self, adapter: Adapter) -> None:
        """Hook the layers that `adapter` contributes to."""
        for name in adapter.layers.keys() - self._hooked:
            self._modules[name].register_forward_hook(self._hook(name))
            self._hooked.add(name)

    def add(self, name: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (tokens, d_out), in place, what the segments' adapters make of `x` (tokens, d_in) in a layer."""
        for adapter, rows in self.segments:
            layer = adapter.layers.get(name)
            if layer is None:
                continue
            part = layer(x if rows is None else x[rows]).to(out.dtype)
            if rows is None:
                out += part
            else:
                out.index_add_(0, rows, part)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor | None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not self.segments:
                return None
            x, out = args[0], output.clone()
            self.add(name, x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))
            return out

        return hook
