"""The forward of Llama-like blocks in few operations: one product for queries, keys and values, one for gate and up.

It computes what the modules of Llama, Mistral, Qwen2 and Qwen3 compute, from their own parts: weights, norms, rotary
angles, activation, and what each layer asks of attention, noted in a forward of the module itself. Knows nothing about
caches or requests: who attends to what is the plan's affair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from maypole.engine.lanes import Lanes
from maypole.engine.repacked import Product, Repacker
from maypole.models.block_views import Block, blocks
from maypole.models.plan import AttentionSpec, Plan

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def understands(module: Any) -> bool:
    """Whether `module` consists of transformers' own blocks of one of these families, its linear layers plain ones."""
    family = module.config.model_type
    if family not in FAMILIES:
        return False
    home = f"transformers.models.{family}.modeling_{family}"
    for block in blocks(module):
        own = (block.module, block.attention, block.mlp, block.attention_norm, block.mlp_norm)
        if any(type(part).__module__ != home for part in own):
            return False
        if any(type(layer) is not nn.Linear for layer in _linears(block)):
            return False
    return True


class FastPath:
    """A forward of the decoder inside `module`; `specs` says what each layer asks of attention.

    Weights are repacked by `repacker` as far as it does that; adapters contribute through `lanes`.
    """

    def __init__(self, module: Any, specs: Mapping[int, AttentionSpec], repacker: Repacker, lanes: Lanes) -> None:
        parts = blocks(module)
        base: Any = parts.base
        self._embeddings, self._angles = parts.embeddings, base.rotary_emb
        self._norm = _Norm.of(parts.final_norm)
        self._lanes = lanes
        names = {id(layer): name for name, layer in module.named_modules()}
        d = int(parts[0].attention.head_dim)  # type: ignore[arg-type]

        def joined(*layers: nn.Module) -> _Joined:
            return _Joined(
                tuple(names[id(layer)] for layer in layers),
                tuple(int(layer.weight.shape[0]) for layer in layers),  # type: ignore[union-attr]
                repacker.product(*layers) or _plain(layers),
                lanes,
            )

        self._layers = [_layer(block, specs[i], d, joined) for i, block in enumerate(parts)]

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        layer: int = -1,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ids, positions: (T,) -> hidden states (T, d) as of transformers' `hidden_states[layer]`.

        With `wanted` (n,) only those of the last layer are made, (n, d): what nobody reads after attention is left out.
        """
        x = self._embeddings(ids)
        cos, sin = (angle[0, :, None] for angle in self._angles(x, positions[None]))
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        depth = range(len(self._layers) + 1)[layer]
        early = wanted is not None and not self._lanes.segments and depth == len(self._layers)
        for i, block in enumerate(self._layers[:depth]):
            x = block(x, cos, sin, plan, wanted if early and i == depth - 1 else None)
        if wanted is not None and not early:
            x = x[wanted]
        return self._norm(x) if depth == len(self._layers) else x


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> "_Norm":
        return cls(module.weight.detach(), module.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class _Joined:
    """Linear layers of the same input: `names` in the module, `sizes` of their outputs, which stand side by side."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    product: Product
    lanes: Lanes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.product(x)
        if self.lanes.segments:
            for name, part in zip(self.names, out.split(self.sizes, dim=-1)):
                self.lanes.add(name, x, part)
        return out


@dataclass(frozen=True, slots=True)
class _Layer:
    spec: AttentionSpec
    heads: int
    kv_heads: int
    d: int
    before_attention: _Norm
    qkv: _Joined
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: _Joined
    before_mlp: _Norm
    gate_up: _Joined
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: _Joined

    def __call__(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: Plan, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """x: (T, d_model), cos and sin: (T, 1, d), the first half of sin with its sign turned."""
        qkv = self.qkv(self.before_attention(x)).view(x.shape[0], -1, self.d)
        turned = self.heads + self.kv_heads
        qk, value = qkv[:, :turned], qkv[:, turned:]
        if self.query_norm is not None and self.key_norm is not None:
            qk = torch.cat((self.query_norm(qk[:, : self.heads]), self.key_norm(qk[:, self.heads :])), dim=1)
        qk = torch.addcmul(qk * cos, qk.roll(self.d // 2, dims=-1), sin)
        out = plan.attend(qk[:, : self.heads], qk[:, self.heads :], value, self.spec)
        if wanted is not None:
            out, x = out[wanted], x[wanted]
        x = x + self.output(out.reshape(x.shape[0], -1))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(self.activation(gate) * up)


def _layer(block: Block, spec: AttentionSpec, d: int, joined: Callable[..., _Joined]) -> _Layer:
    q, k, v, output, gate, up, down = _linears(block)
    attention: Any = block.attention
    mlp: Any = block.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return _Layer(
        spec=spec,
        heads=q.weight.shape[0] // d,
        kv_heads=k.weight.shape[0] // d,
        d=d,
        before_attention=_Norm.of(block.attention_norm),
        qkv=joined(q, k, v),
        query_norm=norms[0] and _Norm.of(norms[0]),
        key_norm=norms[1] and _Norm.of(norms[1]),
        output=joined(output),
        before_mlp=_Norm.of(block.mlp_norm),
        gate_up=joined(gate, up),
        activation=mlp.act_fn,
        down=joined(down),
    )


def _linears(block: Block) -> list[Any]:
    """Of queries, keys, values, attention's output, gate, up and down."""
    assert block.gate is not None
    return [p.module for p in (block.q, block.k, block.v, block.o, block.gate, block.up, block.down)]


def _plain(layers: Sequence[Any]) -> Product:
    if len(layers) == 1:
        return lambda x: F.linear(x, layers[0].weight, layers[0].bias)
    return lambda x: torch.cat([F.linear(x, layer.weight, layer.bias) for layer in layers], dim=-1)
