"""Adapters: made from options, read from directories, merged into their base. Knows nothing about training.

A PEFT type that is not peft's own is found through the entry-point group `maypole.peft_types` when it is first named.
"""

import copy
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from maypole.core.errors import ConfigError, UnsupportedModel, UserError
from maypole.core.identity import digest, identity
from maypole.core.seeds import derive
from maypole.models.hub import local
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.peft_options import PeftOptions

ENTRY_POINTS = "maypole.peft_types"
_LAYERS_ONLY = "a type that adapts layers (prompt learning cannot be packed)"


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """An adapter type from outside peft.

    `register()` makes peft know it; ``apply(x, tensors, config)`` with x: (tokens, d_in) gives the adapter's
    contribution (tokens, d_out) to one linear layer, for whoever runs several adapters in one batch.
    """

    name: str
    config_class: type
    register: Callable[[], None]
    apply: Callable[[torch.Tensor, dict[str, torch.Tensor], Any], torch.Tensor]


def config_class(type_: str) -> type:
    """peft's config class for a type name in lower case, registering it first where another package brings it."""
    known = {str(getattr(t, "value", t)).lower(): c for t, c in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = type_.lower()
    if name in known:
        return known[name]
    entries = {entry.name.lower(): entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in entries:
        raise ConfigError("peft.type", type_, sorted({*known, *entries}))
    try:
        method: PeftMethod = entries[name].load()
        method.register()
    except (ImportError, AttributeError) as error:
        what = f"the package that brings adapter type {type_!r} cannot be loaded: {error}"
        raise UserError(what, entries[name].value, "reinstall it") from error
    return method.config_class


def new_adapter(lm: LanguageModel, options: PeftOptions, *, seed: int, name: str = "default") -> LanguageModel:
    """`lm` with a fresh adapter of its own, trainable, the base frozen; weights drawn from `seed` alone.

    The module of `lm` is wrapped in place: go on with the result. Where no adapter can be made it stays as it was.
    """
    made = config_class(options.type)
    fields = {f for c in made.__mro__ for f in getattr(c, "__dataclass_fields__", {})}
    targets = list(options.target_modules)
    wanted: dict[str, Any] = {
        "r": options.r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        "task_type": "CAUSAL_LM" if lm.transformer.get_output_embeddings() is not None else "SEQ_CLS",
    }
    unknown = sorted(set(options.options) - fields)
    if unknown:
        raise ConfigError("peft.options", unknown[0], f"fields of {made.__name__}: {', '.join(sorted(fields))}")
    try:
        config = made(**{k: v for k, v in wanted.items() if k in fields} | options.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{options.type}: {_first_line(error)}", "--peft.options") from error
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError("peft.type", options.type, _LAYERS_ONLY)
    with _unchanged_on_error(lm, name), own_randomness(derive(seed, "init")):
        try:
            model = _with_config(lm, config, name)
            model.set_adapter(name)
        except ValueError as error:
            what, hint = f"no adapter can be made: {_first_line(error)}", 'module names or "all-linear"'
            raise UserError(what, "--peft.target-modules", hint) from error
    drawn = identity([options.type, options.r, options.lora_alpha, wanted["target_modules"], options.options, seed])
    fingerprint = digest("new adapter", lm.fingerprint, drawn) if lm.fingerprint and drawn else None
    return replace(lm, model=model, adapter=FOLLOW, fingerprint=fingerprint)


def adapter_config(directory: Path) -> dict[str, Any]:
    """The directory's adapter_config.json; a directory without whole adapter weights in safetensors is an error."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text())
    except FileNotFoundError as error:
        raise UserError("adapter_config.json is missing", str(directory), "a directory written by peft") from error
    except (OSError, ValueError) as error:
        raise UserError("adapter_config.json cannot be read", str(directory), "valid JSON") from error
    if not isinstance(config, dict):
        raise UserError("adapter_config.json holds no mapping", str(directory), "a directory written by peft")
    if not (directory / "adapter_model.safetensors").is_file():
        hint = "adapters are read from safetensors only; save it again with safe_serialization=True"
        raise UserError("adapter_model.safetensors is missing", str(directory), hint)
    return config


def load_adapter(lm: LanguageModel, directory: str | Path, *, name: str = "default") -> LanguageModel:
    """`lm` with the adapter of a PEFT directory or hub id added under `name` and switched on, not trainable.

    UserError where it was made for another shape of model; the module of `lm` then stays as it was.
    """
    path, where = local(directory), str(directory)
    made: Any = config_class(str(adapter_config(path).get("peft_type") or "lora"))
    try:
        config = made.from_pretrained(str(path), inference_mode=True)
        tensors = load_file(path / "adapter_model.safetensors")
    except SafetensorError as error:
        what = f"adapter_model.safetensors cannot be read: {_first_line(error)}"
        raise UserError(what, where, "a whole file; copy it again") from error
    except (TypeError, ValueError) as error:
        what = f"adapter_config.json cannot be used: {_first_line(error)}"
        raise UserError(what, where, "a directory written by peft") from error
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError("peft.type", str(getattr(config.peft_type, "value", config.peft_type)), _LAYERS_ONLY)
    with _unchanged_on_error(lm, name), own_randomness(0):
        try:
            model = _with_config(lm, config, name)
            _fill(model, tensors, name)
            model.set_adapter(name, inference_mode=True)
        except (ValueError, RuntimeError, KeyError) as error:
            what = f"the adapter does not fit {lm.name}: {_first_line(error)}"
            raise UserError(what, where, f"an adapter of {config.base_model_name_or_path or 'this model'}") from error
    model.eval()
    seen = identity(path)
    fingerprint = f"{lm.fingerprint}+{seen}" if lm.fingerprint and seen else None
    return replace(lm, model=model, adapter=FOLLOW, fingerprint=fingerprint)


def snapshot(lm: LanguageModel, name: str) -> LanguageModel:
    """A view of `lm` in which a frozen copy of its adapter is on, called `name`; the module holds both afterwards."""
    active = list(lm.model.base_model.active_adapters)
    chosen = active[0] if lm.adapter in (FOLLOW, None) else str(lm.adapter)
    tensors = peft.get_peft_model_state_dict(lm.model, adapter_name=chosen, save_embedding_layers=False)
    trainable = {n for n, p in lm.model.named_parameters() if p.requires_grad}
    with _unchanged_on_error(lm, name), own_randomness(0):
        lm.model.add_adapter(name, copy.deepcopy(lm.model.peft_config[chosen]))
        _fill(lm.model, {n: t.detach().clone() for n, t in tensors.items()}, name)
        lm.model.base_model.set_adapter(active)
    for n, parameter in lm.model.named_parameters():
        parameter.requires_grad_(n in trainable)
    return replace(lm, adapter=name)


def merged(lm: LanguageModel, name: str | None = None) -> LanguageModel:
    """`lm` with adapter `name` added into its base weights in place, other adapters dropped.

    None is the view's adapter, or the active one. Each layer is added up in fp32 and rounded once, to the dtype it
    had. Where an adapter changes a head that shares its weight with the embeddings, the two are separated.
    """
    if not lm.adapters or (name is None and lm.adapter is None):
        raise UserError(f"{lm.name} has no adapter to merge", expected="--adapter DIR")
    chosen = lm.adapter if name is None and lm.adapter != FOLLOW else name
    if chosen is not None and chosen not in lm.adapters:
        raise UserError(f"no adapter {chosen!r} in {lm.name}", expected=f"adapters: {', '.join(lm.adapters)}")
    if lm.quantization:
        what = f"an adapter cannot be merged into weights held as {lm.quantization}: rounding them again loses some"
        raise UserError(what, lm.name, "load the model without quantization, then merge")
    if chosen is not None:
        lm.model.set_adapter(chosen)
    _untie(lm.transformer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged")
            for layer in lm.model.modules():
                if isinstance(layer, BaseTunerLayer):
                    _merge_layer(layer)
            model = lm.model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        kind = next(iter(lm.model.peft_config.values())).peft_type
        raise UnsupportedModel(
            str(getattr(kind, "value", kind)), "a way to be merged into its base", "keep it as an adapter"
        ) from error
    except ValueError as error:
        raise UserError(f"the adapter cannot be merged: {_first_line(error)}", lm.name) from error
    lm.base_changed()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(attribute, None)
    fingerprint = digest("merged", lm.fingerprint) if lm.fingerprint else None
    # An adapter made on top must not name the unmerged base as its own.
    return replace(lm, model=model, adapter=FOLLOW, fingerprint=fingerprint, name=f"{lm.name} (merged)")


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed` on the CPU; the global generators of all devices go on as if nothing was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _with_config(lm: LanguageModel, config: Any, name: str) -> Any:
    if not lm.adapters:
        with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out; paths are ours
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path` was renamed")
            return peft.get_peft_model(lm.transformer, config, adapter_name=name)
    lm.model.add_adapter(name, config)
    return lm.model


def _fill(model: Any, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Copy `tensors` into adapter `name`; ValueError unless they are exactly its tensors, which peft only warns of."""
    wanted = set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    missing = sorted(wanted - tensors.keys())
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    unexpected = sorted(peft.set_peft_model_state_dict(model, tensors, adapter_name=name).unexpected_keys)
    if unexpected:
        raise ValueError(f"{len(unexpected)} of its weights have no place in the model, such as {unexpected[0]}")


@contextmanager
def _unchanged_on_error(lm: LanguageModel, name: str) -> Iterator[None]:
    """Take a half-made adapter `name` out of the module again when making it fails."""
    if name in lm.adapters:
        raise UserError(f"{lm.name} has an adapter called {name!r} already", expected="another name")
    transformer, had = lm.transformer, lm.adapters
    active = list(lm.model.base_model.active_adapters) if had else []
    trainable = [(p, p.requires_grad) for p in lm.model.parameters()]
    try:
        yield
    except BaseException:
        if not had:
            strip(transformer)
        elif name in lm.model.peft_config:
            lm.model.delete_adapter(name)
            lm.model.base_model.set_adapter(active)
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
        raise


def strip(model: nn.Module) -> None:
    """Take the adapters of a transformers model out of it again; their weights are lost, the base is as it was."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, key, child.get_base_layer())
            elif isinstance(child, AuxiliaryTrainingWrapper):
                setattr(parent, key, child.original_module)
    model.__dict__.pop("peft_config", None)


def _merge_layer(layer: BaseTunerLayer) -> None:
    parameters: list[nn.Parameter] = list(layer.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    before = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    layer.merge(safe_merge=True)
    for parameter, dtype in zip(parameters, before):
        parameter.data = parameter.data.to(dtype)


def _untie(model: Any) -> None:
    """Give the head a weight of its own where it shares the embeddings' and an adapter changes one of the two."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    adapted = any(isinstance(layer, BaseTunerLayer) for layer in (head, embeddings))
    if not adapted or head is None or head.weight is not embeddings.weight:
        return
    own: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    own.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=bool(own.weight.requires_grad))
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
    return text[:300]
