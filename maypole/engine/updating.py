"""New weights for an engine: a base, or an adapter copied, from any source, and who has to end for them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.engine.adapter_files import Base, Limits, from_directory
from maypole.engine.adapters import Adapter, from_model, from_tensors
from maypole.engine.request import named_in
from maypole.engine.runner import Runner
from maypole.engine.scheduler import Scheduler
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.loading import load


def default_adapter(lm: LanguageModel) -> str | None:
    """The adapter that `lm` runs with as it stands."""
    if lm.adapter != FOLLOW or not lm.adapters:
        return None if lm.adapter == FOLLOW else lm.adapter
    active = list(lm.model.active_adapters)
    if len(active) > 1:
        raise UnsupportedCapability(f"{len(active)} adapters are active together", lm.name, "a view with one of them")
    return active[0] if active else None


def adapters_of(lm: LanguageModel, runner: Runner) -> dict[str, Adapter]:
    """Copies of every adapter in the module of `lm`."""
    if lm.adapters and not runner.packed:
        raise UnsupportedCapability("adapters on an encoder", lm.name, "merge it into its base first")
    return {name: from_model(lm.model, name, runner.module) for name in lm.adapters}


def settle(scheduler: Scheduler, adapter: str | None, step: Callable[[], object], *, abort: bool) -> None:
    """No running sequence depends on what is about to change, be it `adapter` or the base. The engine's lock is held.

    Those of an adapter finish with the one they have; those of a base finish now, or end with "update".
    """
    scheduler.sweep()
    if abort:
        for sequence in scheduler.begun:
            if adapter is None or adapter in named_in(sequence.target):
                sequence.ended = "update"
        scheduler.sweep()
    if adapter is None:
        scheduler.admitting = False
        while scheduler.begun:
            step()
        scheduler.admitting = True


def adapter_from(source: Any, name: str, base: Base, limits: Limits, known: Adapter | None) -> Adapter:
    """Adapter `name` from a LanguageModel, a PEFT model, a state dict or a directory, for `base`.

    `known` is the adapter it replaces; a state dict takes its settings from there.
    """
    into = base.module
    if isinstance(source, str | Path):
        return from_directory(source, name, base, limits)
    if isinstance(source, Mapping):
        if known is None:
            raise UserError(f"a state dict alone cannot make the new adapter {name!r}", expected="its directory")
        tensors = {key.replace(f".{name}.", "."): value for key, value in source.items()}
        return from_tensors(name, known.config, tensors, into)
    view = default_adapter(source) if isinstance(source, LanguageModel) else None
    model = source.model if isinstance(source, LanguageModel) else source
    present = list(getattr(model, "peft_config", {}))
    if not present:
        raise UserError("the model has no adapter", expected="a model with one, or an adapter's directory")
    chosen = name if name in present else view or model.active_adapters[0]
    return replace(from_model(model, chosen, into), name=name)


def base_from(source: Any, lm: LanguageModel) -> tuple[LanguageModel, dict[str, torch.Tensor] | None]:
    """The model that takes the place of `lm`, and the tensors that replace Parameters of it, if any."""
    if isinstance(source, LanguageModel):
        return source, None
    if isinstance(source, str | Path):
        held = lm.quantization
        return load(source, device=lm.device, dtype=lm.transformer.dtype, quantization=held), None
    if isinstance(source, Mapping):
        return lm, {name: tensor for name, tensor in source.items() if isinstance(tensor, torch.Tensor)}
    if isinstance(source, nn.Module):
        return LanguageModel(source, lm.tokenizer, lm.name, None, lm.dtype), None
    raise UserError(f"no weights in a {type(source).__name__}", "update", "a model, a state dict or a directory")
