"""A language model as the rooms hand it on: module, tokenizer, name and fingerprint; a view of it per adapter.

Knows nothing about where it was loaded from or how it is trained.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maypole.core.errors import UserError
from maypole.core.identity import digest
from maypole.models.attention import causal_lm
from maypole.models.quantized import Quantization, quantization_of

FOLLOW = "·"
"""The adapter of a LanguageModel that is no view: whatever is active in the module."""


@dataclass(slots=True)
class _Versions:
    base: int = 0


@dataclass(slots=True)
class LanguageModel:
    """`model` is a transformers model, or a PEFT model around one; several LanguageModels may be views of one module.

    `name` is the path or hub id it came from, `fingerprint` identifies its weights (None: unknown, so results made
    with it are never reused), `dtype` is what it was loaded in and is saved in.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str | None
    dtype: torch.dtype = torch.float32
    adapter: str | None = FOLLOW
    versions: _Versions = field(default_factory=_Versions, repr=False)

    @property
    def base_version(self) -> int:
        """Counts changes of the base weights; all views of a module share it."""
        return self.versions.base

    def base_changed(self) -> None:
        """To be called by whoever changed base weights in memory, after every change."""
        self.versions.base += 1

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformers model inside, without PEFT's wrapper."""
        return causal_lm(self.model)

    @property
    def quantization(self) -> Quantization | None:
        """How the base weights are held, None where they are as they were stored."""
        return quantization_of(self.model)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the module, () where it has none."""
        return tuple(self.model.peft_config) if isinstance(self.model, PeftModel) else ()

    @property
    def max_length(self) -> int:
        """Longest input in tokens that the model has positions for."""
        config: Any = self.transformer.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end a completion: the generation config's, else the config's, else the tokenizer's."""
        model: Any = self.transformer
        for source in (getattr(model, "generation_config", None), model.config, self.tokenizer):
            ends = getattr(source, "eos_token_id", None)
            if ends is not None:
                return tuple(int(i) for i in (ends if isinstance(ends, list | tuple) else [ends]))
        return ()

    def copy(self) -> "LanguageModel":
        """The same model with weights of its own."""
        return replace(self, model=copy.deepcopy(self.model), versions=_Versions())

    def with_adapter(self, name: str | None) -> "LanguageModel":
        """A view of the same module in which adapter `name` is on, or none for None; nothing is copied or switched."""
        if name is not None and name not in self.adapters:
            raise UserError(f"no adapter {name!r} in {self.name}", expected=f"adapters: {', '.join(self.adapters)}")
        if not self.adapters or name == self.adapter:
            return replace(self, adapter=name)
        seen = self.fingerprint and digest("view", self.fingerprint, name or "")
        return replace(self, adapter=name, fingerprint=seen)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Inside, the module runs with this view's adapter; what was active and trainable before is restored."""
        if self.adapter == FOLLOW or not self.adapters:
            yield self.model
            return
        tuner = self.model.base_model
        before, enabled = list(tuner.active_adapters), adapters_enabled(self.model)
        trainable = [(p, p.requires_grad) for p in self.model.parameters()]
        try:
            if self.adapter is None:
                tuner.disable_adapter_layers()
            else:
                tuner.enable_adapter_layers()
                tuner.set_adapter(self.adapter)
            yield self.model
        finally:
            tuner.enable_adapter_layers()
            tuner.set_adapter(before)
            if not enabled:
                tuner.disable_adapter_layers()
            for parameter, wanted in trainable:
                parameter.requires_grad_(wanted)


def adapters_enabled(model: nn.Module) -> bool:
    """Whether the adapter layers of a PEFT model take part in its forward pass."""
    return not any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
