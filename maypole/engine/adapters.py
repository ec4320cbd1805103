"""One adapter as tensors beside the model, by the layers that it adds to. Knows nothing about files, batches, requests.

LoRA is computed here, other types by the `apply` of their PeftMethod. What does not fit the model's modules, or is not
finite, is refused before any of it is kept: in a batch with others a NaN would be everybody's.
"""

import importlib.metadata
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import nn

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.models.adapters import ENTRY_POINTS, PeftMethod

_FUSING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that change the base weights, which a directory alone does not tell."""


class Contribution(Protocol):
    """(tokens, d_in) -> (tokens, d_out), to be added to a linear layer's output."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    def holding(self, tensors: Mapping[str, torch.Tensor]) -> "Contribution": ...


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """B (A x) (arXiv 2106.09685). down: (r, d_in), up: (d_out, r), bias: (d_out,); both have `scaling` in them."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    scaling: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = (x.to(self.down.dtype) @ self.down.t()) @ self.up.t()
        return out if self.bias is None else out + self.bias

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        found = {"down": self.down, "up": self.up, "bias": self.bias}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def holding(self, tensors: Mapping[str, torch.Tensor]) -> "Lora":
        return replace(self, **tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """The contribution of another type of adapter."""

    method: PeftMethod
    tensors: Mapping[str, torch.Tensor]
    config: Any

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(x, dict(self.tensors), self.config)

    def holding(self, tensors: Mapping[str, torch.Tensor]) -> "Applied":
        return replace(self, tensors=tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter's contributions by module name. `heads` holds whole replacements of a score head's weights.

    Two adapters with equal `key` are the same weights, loaded twice. `rank` is the highest of its layers where all of
    them are LoRA, else 0.
    """

    name: str
    config: Any
    layers: Mapping[str, Contribution]
    heads: Mapping[str, torch.Tensor]
    key: Hashable = field(default_factory=object)
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        ranks = [layer.down.shape[0] if isinstance(layer, Lora) else 0 for layer in self.layers.values()]
        object.__setattr__(self, "rank", max(ranks, default=0) if all(ranks) else 0)

    @property
    def bytes(self) -> int:
        of_layers = sum(t.nbytes for layer in self.layers.values() for t in layer.tensors.values())
        return of_layers + sum(t.nbytes for t in self.heads.values())

    def to(self, device: torch.device) -> "Adapter":
        """The same on another device, each type and shape of tensor moved in one copy; itself where it is there."""
        every = [t for layer in self.layers.values() for t in layer.tensors.values()] + [*self.heads.values()]
        if all(t.device == device for t in every):
            return self
        moved = iter(_together(every, device))
        layers = {n: layer.holding({k: next(moved) for k in layer.tensors}) for n, layer in self.layers.items()}
        return replace(self, layers=layers, heads={name: next(moved) for name in self.heads})


def from_model(model: Any, name: str, into: nn.Module) -> Adapter:
    """Adapter `name` of a live PEFT model, copied; `into` is the engine's module."""
    if name not in model.peft_config:
        raise UserError(f"no adapter {name!r}", expected=f"adapters: {', '.join(model.peft_config)}")
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return from_tensors(name, model.peft_config[name], tensors, into)


def from_tensors(
    name: str,
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    into: nn.Module,
    where: str = "",
    *,
    key: Hashable = None,
    device: torch.device | None = None,
) -> Adapter:
    """An adapter from tensors named as PEFT saves them, copied to `device`, by default that of `into`.

    UserError where they do not fit the modules of `into`, or are not finite.
    """
    grouped, heads = _grouped(tensors, into, where)
    shapes = {m: {p: tuple(t.shape) for p, t in parts.items()} for m, parts in grouped.items()}
    check_layers(shapes, config, into, where)
    if not _finite(tensors.values()):
        full = next(name for name, tensor in tensors.items() if not _finite([tensor]))
        raise UserError(f"{full!r} holds numbers that are not finite", where, "weights without NaN and infinity")
    make = _lora if kind_of(config) == "lora" else _other(config, where)
    at = next(into.parameters()).device if device is None else device
    copied = _together([t.detach() for parts in grouped.values() for t in parts.values()] + [*heads.values()], at)
    every = iter(copied)
    layers = {m: make(m, {p: next(every) for p in parts}, config) for m, parts in grouped.items()}
    kept = {full: next(every) for full in heads}
    return Adapter(name, config, layers, kept, object() if key is None else key)


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    """In few operations: each lets a step that runs beside go first."""
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.detach().flatten())
    return all(bool(torch.isfinite(torch.cat(alike)).all()) for alike in by_type.values())


def check_config(config: Any, where: str) -> None:
    """UnsupportedCapability for adapters that are more than an addition to linear layers."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(_FUSING_STARTS):
        raise UnsupportedCapability(f"an adapter begun by {start!r} changed its base", where, "a merged model")
    strange = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "aLoRA",
               "use_bdlora": "BD-LoRA", "arrow_config": "Arrow", "kasa_config": "KaSA",
               "monteclora_config": "MonteCLoRA", "layer_replication": "layers that stand twice",
               "target_parameters": "experts' parameters"}  # fmt: skip
    for option, what in strange.items():
        if getattr(config, option, None):
            raise UnsupportedCapability(f"LoRA with {what} ({option}) cannot share a batch", where, "merge it first")
    if kind_of(config) != "lora":
        _other(config, where)


def check_layers(shapes: Mapping[str, Mapping[str, tuple[int, ...]]], config: Any, into: Any, where: str) -> None:
    """UserError unless the parts of every module fit it; `shapes` maps modules of `into` to parts to shapes."""
    modules, head = dict(into.named_modules()), into.get_output_embeddings()
    ends = [
        f"{name}.{part}" for name in shapes for part in sorted(shapes[name])
        if isinstance(modules[name], nn.Embedding) or modules[name] is head
    ]  # fmt: skip
    if ends:
        what = f"the adapter changes embeddings or head: {', '.join(ends)}"
        raise UnsupportedCapability(what, where, "merge it first")
    for name, parts in shapes.items():
        sizes = linear_shape(modules[name])
        if sizes is None:
            raise UserError(f"the adapter changes {name!r}, which is no linear layer", where, "linear layers only")
        if kind_of(config) == "lora":
            _check_lora(name, parts, config, sizes, where)


def _check_lora(
    name: str, parts: Mapping[str, tuple[int, ...]], config: Any, sizes: tuple[int, int], where: str
) -> None:
    strange = sorted(set(parts) - {"lora_A.weight", "lora_B.weight", "lora_B.bias"})
    if strange:
        raise UnsupportedCapability(f"LoRA with {strange[0]} cannot share a batch", where, "merge it first")
    for part in ("lora_A.weight", "lora_B.weight"):
        if part not in parts:
            raise UserError(f"the adapter has no {name}.{part}", where, "both factors of every layer")
    (d_in, d_out), rank = sizes, _by_pattern(config.rank_pattern, name, config.r)
    wanted = {"lora_A.weight": (rank, d_in), "lora_B.weight": (d_out, rank), "lora_B.bias": (d_out,)}
    for part, shape in parts.items():
        if shape != wanted[part]:
            what = f"{name}.{part} is {shape}, and the model and adapter_config.json ask for {wanted[part]}"
            raise UserError(what, where, "an adapter of this base model")


def modules_of(names: Mapping[str, Any] | list[str], into: nn.Module, where: str) -> dict[str, tuple[str, str]]:
    """Name as PEFT saves it -> (module of `into`, part); UserError for what `into` lacks."""
    modules = {name for name, _ in into.named_modules()}
    found: dict[str, tuple[str, str]] = {}
    for key in names:
        full = key.removeprefix("base_model.model.")
        parts = full.split(".")
        cut = next((n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in modules), 0)
        if not cut:
            raise UserError(f"the adapter changes {full!r}, which the model lacks", where, "an adapter of this model")
        module, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
        if rest in ("weight", "bias") and module != "score":
            raise UnsupportedCapability(f"the adapter replaces {module!r} as a whole", where, "merge it first")
        found[key] = (module, rest)
    return found


def kind_of(config: Any) -> str:
    """The adapter's type in lower case."""
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear layer, None where it is none."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    weight = getattr(module, "weight", None)
    if hasattr(module, "nf") and isinstance(weight, torch.Tensor):  # GPT-2's Conv1D
        return weight.shape[0], weight.shape[1]
    return None


def _grouped(
    tensors: Mapping[str, torch.Tensor], into: nn.Module, where: str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Tensors by module and part, and the score head's whole weights."""
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    heads: dict[str, torch.Tensor] = {}
    for key, (module, part) in modules_of(tensors, into, where).items():
        if part in ("weight", "bias"):
            heads[f"{module}.{part}"] = tensors[key].detach()
        else:
            grouped.setdefault(module, {})[part] = tensors[key].detach()
    return grouped, heads


def _lora(module: str, parts: Mapping[str, torch.Tensor], config: Any) -> Lora:
    down, up, bias = parts["lora_A.weight"], parts["lora_B.weight"], parts.get("lora_B.bias")
    alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha)
    rank = down.shape[0]
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    up = (up * scaling).t().contiguous().t()  # laid out as it is stacked with others, in the thread that reads it
    return Lora(down, up, None if bias is None else bias * scaling, scaling)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    return (patterns or {}).get(get_pattern_key(list(patterns or ()), module), default)


def _other(config: Any, where: str = "") -> Callable[[str, Mapping[str, torch.Tensor], Any], Applied]:
    kind = kind_of(config)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name.lower() == kind:
            method: PeftMethod = entry.load()
            return lambda module, parts, config: Applied(method, parts, config)
    raise UnsupportedCapability(f"adapters of type {kind!r} cannot share a batch", where, "merge it into its base")


def _together(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies on `device`; all of one type go there in one piece, for a copy a layer takes most of the time."""
    made: list[torch.Tensor] = list(tensors)
    for dtype in {t.dtype for t in tensors}:
        chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[i].reshape(-1) for i in chosen]).to(device)
        for i, piece in zip(chosen, flat.split([tensors[i].numel() for i in chosen])):
            made[i] = piece.view(tensors[i].shape)
    return made
