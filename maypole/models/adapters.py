"""Adapters: made from options, read from directories, merged into their base. Knows nothing about training.

A PEFT type that is not peft's own is found through the entry-point group `maypole.peft_types` when it is first named.
"""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch

from maypole.core.errors import ConfigError, UnsupportedModel, UserError
from maypole.core.identity import identity
from maypole.core.seeds import derive
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.peft_options import PeftOptions

ENTRY_POINTS = "maypole.peft_types"


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
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name.lower() == name:
            method: PeftMethod = entry.load()
            method.register()
            return method.config_class
    raise ConfigError("peft.type", type_, sorted(known))


def new_adapter(lm: LanguageModel, options: PeftOptions, *, seed: int, name: str = "default") -> LanguageModel:
    """`lm` with a fresh adapter of its own, trainable, the base frozen; weights drawn from `seed` alone."""
    made = config_class(options.type)
    fields = {f for c in made.__mro__ for f in getattr(c, "__dataclass_fields__", {})}
    wanted: dict[str, Any] = {
        "r": options.r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": options.target_modules
        if isinstance(options.target_modules, str)
        else list(options.target_modules),
        "task_type": "CAUSAL_LM",
    }
    unknown = sorted(set(options.options) - fields)
    if unknown:
        raise ConfigError("peft.options", unknown[0], f"fields of {made.__name__}: {', '.join(sorted(fields))}")
    config = made(**{k: v for k, v in wanted.items() if k in fields} | options.options)
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError("peft.type", options.type, "a type that adapts layers (prompt learning cannot be packed)")
    config.base_model_name_or_path = lm.name
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init"))
            if lm.adapters:
                lm.model.add_adapter(name, config)
                lm.model.set_adapter(name)
                model = lm.model
            else:
                model = peft.get_peft_model(lm.transformer, config, adapter_name=name)
    except ValueError as error:
        raise UserError(
            f"no adapter can be made: {error}", "--peft.target-modules", 'module names or "all-linear"'
        ) from error
    return replace(lm, model=model, adapter=FOLLOW)


def adapter_config(directory: Path) -> dict[str, Any]:
    """The directory's adapter_config.json; a directory without whole adapter weights in safetensors is an error."""
    try:
        config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"not a readable adapter: {error}", str(directory)) from error
    if not (directory / "adapter_model.safetensors").is_file():
        hint = "adapters are read from safetensors only; save it again with safe_serialization=True"
        raise UserError("adapter_model.safetensors is missing", str(directory), hint)
    return config


def load_adapter(lm: LanguageModel, directory: str | Path, *, name: str = "default") -> LanguageModel:
    """`lm` with the adapter of a PEFT directory added under `name` and switched on, not trainable.

    UserError where it was made for another shape of model.
    """
    path = Path(directory)
    config_class(str(adapter_config(path).get("peft_type", "lora")))
    try:
        if lm.adapters:
            lm.model.load_adapter(str(path), adapter_name=name)
            lm.model.set_adapter(name)
            model = lm.model
        else:
            model = peft.PeftModel.from_pretrained(lm.transformer, str(path), adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the adapter does not fit {lm.name}: {_first_line(error)}", str(path)) from error
    model.eval()
    both = (lm.fingerprint, identity(path))
    fingerprint = "+".join(both) if all(both) else None  # type: ignore[arg-type]
    return replace(lm, model=model, adapter=FOLLOW, fingerprint=fingerprint)


def merged(lm: LanguageModel, name: str | None = None) -> LanguageModel:
    """`lm` with adapter `name` (None: the active one) added into its base weights in place, in fp32, and removed."""
    if not lm.adapters:
        raise UserError(f"{lm.name} has no adapter to merge", expected="--adapter DIR")
    if name is not None:
        lm.model.set_adapter(name)
    kept: dict[str, torch.dtype] = {}
    for key, parameter in lm.model.named_parameters():
        kept[key] = parameter.dtype
        parameter.data = parameter.data.float()
    try:
        model = lm.model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        kind = next(iter(lm.model.peft_config.values())).peft_type
        raise UnsupportedModel(str(kind), "a way to be merged into its base", "keep it as an adapter") from error
    model.to(lm.dtype)
    lm.base_changed()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(attribute, None)
    return replace(lm, model=model, adapter=FOLLOW)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
