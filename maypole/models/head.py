"""Log-probabilities of chosen tokens without ever holding all logits: the head runs in chunks of rows.

Nothing else in maypole computes logits over a vocabulary for more than a chunk. Knows nothing about losses: they are
weights on log-probabilities here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from maypole.models.attention import causal_lm

CHUNK, CHUNK_ON_GPU = 256, 2048
"""Rows whose logits are held at a time: what a CPU's caches like, and enough to keep a GPU busy."""


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap(scale * (hidden weight^T + bias)). weight: (vocabulary, d_model), bias: (vocabulary,)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(
        self, hidden: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """hidden: (rows, d_model) -> (rows, vocabulary) in fp32; for a chunk of rows, never for a whole batch.

        `product`, where given, multiplies by the weight.
        """
        hidden = hidden.to(self.weight.dtype)
        z = hidden @ self.weight.t() if product is None else product(hidden)
        return _finished(z, self.bias, self.scale, self.softcap)


def head_of(model: nn.Module) -> Head:
    """The head of a causal LM (PEFT included); an adapter on the head itself becomes part of its weight, with grad."""
    lm = causal_lm(model)
    layer: Any = lm.get_output_embeddings()
    config = lm.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    bias = getattr(layer, "bias", None)
    return Head(effective_weight(layer), bias, scale, getattr(config, "final_logit_softcapping", None))


def effective_weight(layer: Any) -> torch.Tensor:
    """The weight of a linear layer with the deltas of its active adapters added (differentiable in the adapters)."""
    if hasattr(layer, "modules_to_save"):  # PEFT's full copy
        return layer.modules_to_save[layer.active_adapter].weight if not layer.disable_adapters else layer.weight
    weight = layer.weight
    if not hasattr(layer, "lora_A") or layer.disable_adapters or layer.merged:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            delta = layer.lora_B[name].weight @ layer.lora_A[name].weight
            weight = weight + layer.scaling[name] * delta.to(weight.dtype)
    return weight


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """log p(target) of each row. hidden: (N, d), weight: (V, d), targets: (N,) -> (N,) in fp32.

    Differentiable in hidden, weight and bias: the backward recomputes each chunk's logits (4 matrix products in all),
    so any loss that is a function of log-probs costs no more memory than `chunk` rows of logits (`rows_at_once`).
    """
    chunk = chunk or rows_at_once(hidden.device)
    outputs: Any = _TokenLogprobs.apply(hidden, weight, bias, targets, None, softcap, scale, chunk)
    return outputs[0]


def weighted_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weights * log p, log p (N,) without grad). The gradient is made in the forward pass: 3 products.

    For losses that are linear in the log-probs, whose per-token `weights` (N,) are known beforehand.
    """
    if not torch.is_grad_enabled():
        logps = token_logprobs(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, chunk=chunk)
        return (weights * logps).sum(), logps
    chunk = chunk or rows_at_once(hidden.device)
    outputs: Any = _TokenLogprobs.apply(hidden, weight, bias, targets, weights, softcap, scale, chunk)
    logps, total = outputs
    return total, logps.detach()


def rows_at_once(device: torch.device) -> int:
    """Rows whose logits are held at a time on `device`, where nothing else is asked for."""
    return CHUNK if device.type == "cpu" else CHUNK_ON_GPU


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _TokenLogprobs(torch.autograd.Function):
    """With `weights` the gradient is accumulated during the forward; without, the backward recomputes the logits."""

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, weights, softcap, scale, chunk):
        dtype = _compute_dtype(hidden)
        n = hidden.shape[0]
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            logps = torch.empty(n, dtype=_at_least_fp32(dtype), device=hidden.device)
            fused = weights is not None and any(ctx.needs_input_grad[:3])
            grads = _Grads(ctx.needs_input_grad, hidden, weight, bias) if fused else None
            for a in range(0, n, chunk):
                rows = slice(a, min(a + chunk, n))
                z = _chunk_logits(h[rows], w, bias, scale, softcap)
                capped = z.clone() if fused and softcap is not None else None
                target = z.gather(1, targets[rows, None])
                top = z.amax(dim=1, keepdim=True)
                z.sub_(top).exp_()
                norm = z.sum(dim=1, keepdim=True)
                logps[rows] = (target - top - norm.log()).squeeze(1)
                if grads is not None and weights is not None:
                    grads.add(rows, z, norm, targets[rows], weights[rows], h[rows], w, capped, scale, softcap)
            if grads is not None:
                ctx.save_for_backward(*grads.tensors())
            elif weights is None:
                ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.settings = (softcap, scale, chunk, dtype, fused)
        total: torch.Tensor | None = None
        if weights is not None:
            total = (weights * logps).sum()
            ctx.mark_non_differentiable(logps)
        return logps, total

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        upstream, upstream_total = upstreams
        softcap, scale, chunk, dtype, fused = ctx.settings
        if fused:
            dh, dw, db = ctx.saved_tensors
            grads = [None if g is None else g * upstream_total.to(g.dtype) for g in (dh, dw, db)]
            return (*grads, None, None, None, None, None)
        hidden, weight, bias, targets = ctx.saved_tensors
        grads = _Grads(ctx.needs_input_grad, hidden, weight, bias)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            for a in range(0, hidden.shape[0], chunk):
                rows = slice(a, min(a + chunk, hidden.shape[0]))
                z = _chunk_logits(h[rows], w, bias, scale, softcap)
                capped = z.clone() if softcap is not None else None
                z.sub_(z.amax(dim=1, keepdim=True)).exp_()
                total = z.sum(dim=1, keepdim=True)
                grads.add(rows, z, total, targets[rows], upstream[rows], h[rows], w, capped, scale, softcap)
        return (*grads.tensors(), None, None, None, None, None)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk_logits(h, w, bias, scale, softcap):
    return _finished(h @ w.t(), bias, scale, softcap)


def _finished(z, bias, scale, softcap):
    z = z.to(_at_least_fp32(z.dtype))
    if bias is not None:
        z += bias
    if scale != 1.0:
        z *= scale
    return z if softcap is None else torch.tanh(z / softcap) * softcap


class _Grads:
    """Gradients of sum(g * log p) with respect to hidden, weight and bias, accumulated chunk by chunk."""

    def __init__(self, needs: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        wide = _at_least_fp32(weight.dtype)
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        self.dtypes = (weight.dtype, bias.dtype if bias is not None else None)

    def add(self, rows, exp, total, targets, g, h, w, capped, scale, softcap) -> None:
        """exp: (C, V) = exp(z - max), overwritten; total: its row sums; g: (C,) = dLoss/dlogp."""
        g = g.to(exp.dtype)[:, None]
        dz = exp.mul_(-g / total)
        dz.scatter_add_(1, targets[:, None], g)
        if capped is not None:
            dz.mul_(1.0 - (capped / softcap) ** 2)
        if scale != 1.0:
            dz.mul_(scale)
        if self.bias is not None:
            self.bias += dz.sum(0)
        dz = dz.to(w.dtype)
        if self.hidden is not None:
            self.hidden[rows] = (dz @ w).to(self.hidden.dtype)
        if self.weight is not None:
            if self.weight.dtype == dz.dtype:
                self.weight.addmm_(dz.t(), h)
            else:
                self.weight += dz.t() @ h

    def tensors(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        weight = None if self.weight is None else self.weight.to(self.dtypes[0])
        bias = None if self.bias is None else self.bias.to(self.dtypes[1])
        return self.hidden, weight, bias
