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
from maypole.models.products import product

CHUNK, CHUNK_ON_GPU = 256, 2048
"""Rows whose logits are held at a time: what a CPU's caches like, and enough to keep a GPU busy."""
AT_ONCE, AT_ONCE_ON_GPU = 2**18, 2**26
"""Logits that are held in fp32 at a time: what stays in a CPU's cache, and enough to keep a GPU busy."""

TOGETHER = 2**23
"""Errors of logits that become the weight's gradient in one product, where chunks have fewer: to add what a chunk gives
to the whole gradient takes a CPU as long as a third of the product."""


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
            grads = _Grads(ctx.needs_input_grad, hidden, weight, bias, dtype, chunk) if fused else None
            for a in range(0, n, chunk):
                rows = slice(a, min(a + chunk, n))
                z = _capped(product(h[rows], w), bias, scale, softcap)
                logps[rows] = _logps(z, targets[rows])
                if grads is not None and weights is not None:
                    grads.add(rows, z, targets[rows], logps[rows], weights[rows], h, w, scale, softcap)
            if grads is not None:
                ctx.save_for_backward(*grads.tensors())
            elif weights is None:
                ctx.save_for_backward(hidden, weight, bias, targets, logps)
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
        hidden, weight, bias, targets, logps = ctx.saved_tensors
        grads = _Grads(ctx.needs_input_grad, hidden, weight, bias, dtype, chunk)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            for a in range(0, hidden.shape[0], chunk):
                rows = slice(a, min(a + chunk, hidden.shape[0]))
                z = _capped(product(h[rows], w), bias, scale, softcap)
                grads.add(rows, z, targets[rows], logps[rows], upstream[rows], h, w, scale, softcap)
        return (*grads.tensors(), None, None, None, None, None)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _finished(z, bias, scale, softcap):
    return _capped(z, bias, scale, softcap).to(_at_least_fp32(z.dtype))


def _capped(z, bias, scale, softcap):
    """As they are where nothing is done to them, or else in fp32."""
    if bias is None and scale == 1.0 and softcap is None:
        return z
    z = z.to(_at_least_fp32(z.dtype))
    if bias is not None:
        z += bias
    if scale != 1.0:
        z *= scale
    return z if softcap is None else torch.tanh(z / softcap) * softcap


def _logps(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(z) in fp32 at `targets`, a few rows at a time. z: (C, V) -> (C,)."""
    wide = _at_least_fp32(z.dtype)
    few = max(1, (AT_ONCE if z.device.type == "cpu" else AT_ONCE_ON_GPU) // z.shape[1])
    found = [
        torch.log_softmax(part, dim=1, dtype=wide).gather(1, targets[a : a + few, None])
        for a, part in zip(range(0, len(z), few), z.split(few))
    ]
    return torch.cat(found).squeeze(1)


class _Grads:
    """Gradients of sum(g * log p) with respect to hidden, weight and bias, accumulated chunk by chunk.

    With E = softmax(z) - onehot(target) those are -g E W, -E^T (g h) and -E^T g: no (C, V) is multiplied by g.
    """

    def __init__(
        self,
        needs: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        chunk: int,
    ) -> None:
        wide = _at_least_fp32(weight.dtype)
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        # In fp32 the product that has fewer rows is the faster one on CPUs, and its sum is turned round.
        self.turned = dtype == torch.float32 and weight.device.type == "cpu" and weight.shape[0] > weight.shape[1]
        layout = weight.t() if self.turned else weight
        self.weight = layout.new_zeros(layout.shape, dtype=wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        self.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        chunks = TOGETHER // (chunk * weight.shape[0]) if needs[1] else 1
        together = min(max(1, chunks) * chunk, len(hidden))
        self.errors = hidden.new_empty(together, weight.shape[0], dtype=dtype)
        self.pushed = hidden.new_empty(together, weight.shape[1], dtype=dtype)

    def add(self, rows, z, targets, logps, g, h, w, scale, softcap) -> None:
        """z: (C, V), targets, logps and g = dLoss/dlogp: (C,), h: (N, d), w: (V, d); `rows` one chunk after another."""
        minus = -g.to(logps.dtype)[:, None]
        first = rows.start % len(self.errors)
        end = first + len(z)
        kept = self.errors[first:end]
        error = torch.softmax(z, dim=1, out=kept) if z.dtype == kept.dtype else torch.softmax(z, dim=1)
        # The target's own error is 1 - p, which rounding would leave nothing of where p is almost 1.
        error[torch.arange(len(targets), device=z.device), targets] = torch.expm1(logps).to(error.dtype)
        if softcap is not None:
            error.mul_(1.0 - (z / softcap) ** 2)
        if scale != 1.0:
            error.mul_(scale)
        if self.bias is not None:
            self.bias += (error * minus).sum(0)
        if error is not kept:
            kept.copy_(error)
        if self.hidden is not None:
            self.hidden[rows] = minus * product(kept, w.t())
        if self.weight is not None:
            self.pushed[first:end] = minus * h[rows]
            if end == len(self.errors) or rows.stop == len(h):
                errors, pushed = self.errors[:end].t(), self.pushed[:end].t()
                self.weight += product(pushed, errors) if self.turned else product(errors, pushed)

    def tensors(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        weight = None if self.weight is None else (self.weight.t() if self.turned else self.weight).to(self.dtypes[0])
        bias = None if self.bias is None else self.bias.to(self.dtypes[1])
        return self.hidden, weight, bias
