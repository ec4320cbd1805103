"""Which weights of a model learn: a new adapter, the adapter at hand, or all; and what a checkpoint keeps of them.

Knows nothing about rows, losses or steps.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from maypole.core.atomic import fsync_directory, fsync_tree
from maypole.core.errors import UserError
from maypole.models.adapters import merged, new_adapter, strip
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.saving import save
from maypole.train.config import TrainConfig
from maypole.train.ranks import ALONE, Ranks
from maypole.train.sharding import split_like

WEIGHTS = "trainable.safetensors"


def become(lm: LanguageModel, made: LanguageModel) -> None:
    """Let the caller's `lm` be what was made of it."""
    lm.model, lm.adapter, lm.name, lm.fingerprint = made.model, made.adapter, made.name, made.fingerprint


def make_trainable(
    lm: LanguageModel,
    config: TrainConfig,
    seed: int,
    folder: Path,
    final: Path | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """What is to be learnt has gradients, the rest has none: a new adapter, the adapter at hand, or all weights.

    An adapter at hand makes room for a new one: it is merged, and the new one's base saved as ``folder/base``, which
    will lie in `final` when the run is whole.
    """
    if config.peft is not None:
        if lm.adapters:
            become(lm, merged(lm))
            ranks.lead(lambda: save(lm, folder / "base"))
            lm.name = str((final or folder).absolute() / "base")
        become(lm, new_adapter(lm, config.peft, seed=seed))
    elif lm.adapters:
        if lm.adapter is None:
            raise UserError("this view leaves its adapters out, and they are what would learn", lm.name, "its base")
        chosen = list(lm.model.base_model.active_adapters) if lm.adapter == FOLLOW else lm.adapter
        lm.model.requires_grad_(False)
        lm.model.base_model.set_adapter(chosen)
    else:
        if lm.quantization:
            what = f"weights held as {lm.quantization} cannot learn, only an adapter on top of them"
            raise UserError(what, lm.name, "--peft.type lora, or no --quantization")
        lm.model.requires_grad_(True)


@contextmanager
def as_before_on_error(lm: LanguageModel) -> Iterator[None]:
    """An error takes a new adapter out again and leaves what is active and trainable as it was.

    What cannot be taken back, a merged adapter or steps in weights that `lm` had already, leaves its fingerprint None.
    """
    before, training = replace(lm), lm.model.training
    active = list(lm.model.base_model.active_adapters) if lm.adapters else []
    flags = [(p, p.requires_grad) for p in lm.model.parameters()]
    try:
        yield
    except BaseException:
        if lm.model is before.model:
            if active:
                lm.model.base_model.set_adapter(active)
        else:
            base = lm.transformer
            strip(base)
            become(lm, replace(lm, model=base, adapter=FOLLOW, fingerprint=None) if active else before)
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
        lm.model.train(training)
        raise


def trains_base(model: nn.Module) -> bool:
    """Whether a trainable parameter is one of the base model's, of whatever type its adapters are."""
    of_adapters: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            inner = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inner = module.original_module
        else:
            continue
        of_adapters |= {id(p) for p in nn.Module.parameters(module)} - {id(p) for p in inner.parameters()}
    return any(p.requires_grad and id(p) not in of_adapters for p in model.parameters())


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters by name; tied ones once."""
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Copy a checkpoint's weights into the model's trainable parameters."""
    with torch.no_grad(), safe_open(checkpoint / WEIGHTS, "pt") as stored:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(split_like(parameter, stored.get_tensor(name)))


def keep_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Write what `load_trainable` reads; a directory that is there already is left alone."""
    if checkpoint.is_dir():
        return
    part = checkpoint.with_suffix(".tmp")
    part.mkdir(parents=True, exist_ok=True)
    save_file(trainable_state(model), part / WEIGHTS)
    fsync_tree(part)
    part.rename(checkpoint)
    fsync_directory(checkpoint.parent)


@contextmanager
def standing_as(lm: LanguageModel, checkpoint: Path, *, aside: Path) -> Iterator[None]:
    """Inside, a checkpoint's weights stand in the place of those that learn, which are in `aside` on the disk."""

    def put(weights: Path) -> None:
        load_trainable(lm.model, weights)
        if trains_base(lm.model):
            lm.base_changed()

    aside.mkdir(exist_ok=True)
    save_file(trainable_state(lm.model), aside / WEIGHTS)
    try:
        put(checkpoint)
        yield
    finally:
        put(aside)
        shutil.rmtree(aside)
