"""One view of a decoder's parts for nine families, so that nobody else walks `model.model.layers`.

Fused projections (Phi-3's qkv and gate/up, GPT-2's Conv1D, GPT-NeoX's interleaved qkv) appear as views that read and
write through to the parameter. Knows nothing about what is done with the parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from maypole.core.errors import UnsupportedModel, UserError
from maypole.models.attention import causal_lm
from maypole.models.quantized import quantization_of

Site = Literal["embed", "block_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "block_out", "final_norm", "logits"]
"""Where in a forward pass: `mlp_mid` is the input of the down projection."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the forward pass; `layer` counts from 0 and is -1 for embed, final_norm and logits."""

    layer: int
    site: Site


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map (out, in) inside a module; `rows` selects its outputs where several maps share one parameter."""

    module: nn.Module
    rows: slice | torch.Tensor | None = None
    transposed: bool = False

    @property
    def weight(self) -> torch.Tensor:
        """(out, in); a view of the parameter, except for index-selected rows (GPT-NeoX), which are a copy."""
        weight: Any = self._parameter
        weight = weight.t() if self.transposed else weight
        return weight if self.rows is None else weight[self.rows]

    @property
    def _parameter(self) -> Any:
        if quantization_of(self.module):
            raise UserError("its weights are quantized and cannot be read or changed", expected="no --quantization")
        return self.module.weight

    @property
    def bias(self) -> torch.Tensor | None:
        bias: Any = getattr(self.module, "bias", None)
        return bias if bias is None or self.rows is None else bias[self.rows]

    @torch.no_grad()
    def write(self, weight: torch.Tensor) -> None:
        """Replace this map's weight, (out, in), in place."""
        own: Any = self._parameter
        target = own.t() if self.transposed else own
        if self.rows is None:
            target.copy_(weight)
        else:
            target[self.rows] = weight.to(target.dtype)


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer. `gate` is None where the MLP is not gated; `post` norms exist in Gemma 2 and 3 only."""

    module: nn.Module
    attention: nn.Module
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    mlp: nn.Module
    gate: Projection | None
    up: Projection
    down: Projection
    attention_norm: nn.Module
    mlp_norm: nn.Module
    parallel: bool = False


@dataclass(frozen=True, slots=True)
class Blocks:
    """The whole decoder: embeddings, blocks in order, final norm, head. `tied` where head and embeddings are one."""

    family: str
    base: nn.Module
    embeddings: nn.Module
    layers: tuple[Block, ...]
    final_norm: nn.Module
    head: nn.Module
    tied: bool

    def __iter__(self) -> Iterator[Block]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> Block:
        return self.layers[layer]


def _linear(module: Any, rows: slice | torch.Tensor | None = None) -> Projection:
    base = getattr(module, "base_layer", module)  # under PEFT the frozen layer
    return Projection(base, rows, transposed=type(base).__name__ == "Conv1D")


def _llama_like(layer: Any, config: Any) -> Block:
    a, m = layer.self_attn, layer.mlp
    gemma = hasattr(layer, "pre_feedforward_layernorm")
    return Block(
        layer, a, _linear(a.q_proj), _linear(a.k_proj), _linear(a.v_proj), _linear(a.o_proj),
        m, _linear(m.gate_proj), _linear(m.up_proj), _linear(m.down_proj),
        layer.input_layernorm, layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm,
    )  # fmt: skip


def _phi3(layer: Any, config: Any) -> Block:
    a, m = layer.self_attn, layer.mlp
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    q, kv, inner = config.num_attention_heads * d, config.num_key_value_heads * d, config.intermediate_size
    return Block(
        layer, a, _linear(a.qkv_proj, slice(0, q)), _linear(a.qkv_proj, slice(q, q + kv)),
        _linear(a.qkv_proj, slice(q + kv, q + 2 * kv)), _linear(a.o_proj),
        m, _linear(m.gate_up_proj, slice(0, inner)), _linear(m.gate_up_proj, slice(inner, 2 * inner)),
        _linear(m.down_proj), layer.input_layernorm, layer.post_attention_layernorm,
    )  # fmt: skip


def _gpt2(layer: Any, config: Any) -> Block:
    a, m, d = layer.attn, layer.mlp, config.hidden_size
    q, k, v = (_linear(a.c_attn, slice(i * d, (i + 1) * d)) for i in range(3))
    return Block(
        layer, a, q, k, v, _linear(a.c_proj), m, None, _linear(m.c_fc), _linear(m.c_proj), layer.ln_1, layer.ln_2
    )


def _gpt_neox(layer: Any, config: Any) -> Block:
    a, m, heads = layer.attention, layer.mlp, config.num_attention_heads
    d = config.hidden_size // heads
    rows = torch.arange(3 * config.hidden_size).view(heads, 3, d)  # per head: its q, k and v
    q, k, v = (_linear(a.query_key_value, rows[:, i].reshape(-1)) for i in range(3))
    return Block(
        layer, a, q, k, v, _linear(a.dense), m, None, _linear(m.dense_h_to_4h), _linear(m.dense_4h_to_h),
        layer.input_layernorm, layer.post_attention_layernorm, parallel=bool(config.use_parallel_residual),
    )  # fmt: skip


_FAMILIES: dict[str, tuple[Any, str, str, str]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"),
        (_llama_like, "embed_tokens", "layers", "norm"),
    ),
    "phi3": (_phi3, "embed_tokens", "layers", "norm"),
    "gpt2": (_gpt2, "wte", "h", "ln_f"),
    "gpt_neox": (_gpt_neox, "embed_in", "layers", "final_layer_norm"),
}
"""model_type -> (block view, names of embeddings, layers and final norm in the base model)."""

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def blocks(model: nn.Module) -> Blocks:
    """The parts of `model` (PEFT included). UnsupportedModel names the family where there is no view for it."""
    lm = causal_lm(model)
    family = lm.config.model_type
    if family not in _FAMILIES:
        raise UnsupportedModel(family, "a view of its blocks", f"families: {', '.join(FAMILIES)}")
    view, embeddings, layers, norm = _FAMILIES[family]
    base: Any = base_model(lm)
    embed = getattr(base, embeddings)
    head: Any = lm.get_output_embeddings()
    return Blocks(
        family=family,
        base=base,
        embeddings=embed,
        layers=tuple(view(layer, lm.config) for layer in getattr(base, layers)),
        final_norm=getattr(base, norm),
        head=head,
        tied=head is not None and head.weight is embed.weight,
    )


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head: gives hidden states (1, tokens, d_model)."""
    lm = causal_lm(model)
    return getattr(lm, lm.base_model_prefix, lm)
