"""Packed execution exists once: an attention implementation named "maypole" that follows the plan in force.

A plan says which of the packed tokens see which (documents, trees, cached prefixes); the model's own forward runs
unchanged. Without a plan this is what plain transformers would use for the checkpoint. Knows nothing about batches of
rows, losses or schedules.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from maypole.core.errors import MaypoleError, UnsupportedModel
from maypole.models.last_layer import last_layer_in_part
from maypole.models.norms import fast_norms
from maypole.models.plan import AttentionSpec, current_plan
from maypole.models.products import fast_products

NAME = "maypole"


class MissingPlan(MaypoleError):
    """A model in packed execution was called without a plan: its tokens would have seen each other's documents."""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query: (1, heads, tokens, d), key and value: (1, kv_heads, tokens, d) -> (1, tokens, heads, d)."""
    plan = current_plan()
    if plan is None:
        return _plain(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
            sliding_window=sliding_window, softcap=softcap, **kwargs,
        )  # fmt: skip
    if kwargs.get("s_aux") is not None:
        raise UnsupportedModel(_family(module), "packed attention (it uses attention sinks)")
    if attention_mask is not None or query.shape[0] != 1:
        raise MaypoleError("packed execution takes one row of tokens and no attention mask")
    spec = AttentionSpec(
        layer=int(getattr(module, "layer_idx", 0) or 0),
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window=sliding_window,
        softcap=softcap,
        dropout=dropout,
    )
    out = plan.attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), spec)
    return out.unsqueeze(0), None


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    if current_plan() is not None:
        return None
    config = kwargs["config"]
    if getattr(config, "_maypole_strict", False):
        raise MissingPlan("this module is in packed execution; call it inside attention_plan(...)")
    return AttentionMaskInterface()[_plain_name(config)](*args, **kwargs)


def _plain_name(config: PretrainedConfig) -> str:
    return getattr(config, "_maypole_plain", "sdpa")


def _plain(module: nn.Module) -> Any:
    config: Any = module.config
    if getattr(config, "_maypole_strict", False):
        raise MissingPlan("this module is in packed execution; call it inside attention_plan(...)")
    if _plain_name(config) == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()["sdpa"]


def _family(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


def configs(model: nn.Module) -> list[PretrainedConfig]:
    """The distinct config objects that the model's submodules point to."""
    found: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    return list(found.values())


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, which may be wrapped by PEFT."""
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "peft_config") and hasattr(outer, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModel(type(model).__name__, "a transformers PreTrainedModel inside")
    return inner


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModel where packed execution would be wrong: ALiBi, recurrent layers, own attention code."""
    lm = causal_lm(model)
    family = lm.config.model_type
    if not getattr(lm, "_supports_attention_backend", False):
        raise UnsupportedModel(family, "a replaceable attention (transformers' _supports_attention_backend)")
    if getattr(lm.config, "is_causal", True) is False or getattr(lm.config, "use_bidirectional_attention", False):
        raise UnsupportedModel(family, "causal attention")


@contextmanager
def packed_execution(model: nn.Module) -> Iterator[None]:
    """Run `model` through "maypole" attention and by `fast_products`; restored on the way out.

    A missing plan raises inside.
    """
    check_supported(model)
    plain = "sdpa" if getattr(causal_lm(model), "_supports_sdpa", False) else "eager"
    before = [(c, c._attn_implementation, _ours(c)) for c in configs(model)]
    try:
        for config, _, _ in before:
            use_packed(config, plain)
        with fast_products(model), fast_norms(model), last_layer_in_part(causal_lm(model)):
            yield
    finally:
        for config, implementation, ours in before:
            config._attn_implementation = implementation
            for name in _ours(config):
                delattr(config, name)
            config.__dict__.update(ours)


def _ours(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name.startswith("_maypole")}


def use_packed(config: Any, plain: str = "sdpa", strict: bool = True) -> None:
    """Point one config at "maypole" attention; `plain` is what runs where no plan is in force and `strict` is off."""
    config._attn_implementation = NAME
    config._maypole_plain = plain
    config._maypole_strict = strict
