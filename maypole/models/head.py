"""Log-probabilities of chosen tokens without ever holding all logits: the head runs in chunks of rows.

Nothing else in maypole computes logits over a vocabulary for more than a chunk. Knows nothing about losses: they are
weights on log-probabilities here.
"""

from collections.abc import Callable, Iterator
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

TOGETHER = 2**24
"""Errors of logits that are held until the weight's gradient is made of them in one product, where chunks have fewer:
to add what a chunk gives to the whole gradient takes a CPU as long as a third of the product."""

HELD = 1e-30
"""Probabilities above it are held in fp32 as exactly as others."""


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

    Differentiable in hidden, weight and bias, for any loss that is a function of log-probs. Of logits no more is held
    than `chunk` rows (`rows_at_once`), or `TOGETHER` numbers where those are more: what the weight's gradient needs of
    rows beyond them is computed twice. 2 matrix products with a frozen weight, else 3, and a 4th for those rows.
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
    """With E = softmax(z) - onehot(target) and g = dLoss/dlogp the gradient is -g (E W) in hidden, -E^T (g h) in the
    weight and -E^T g in the bias: no (C, V) is multiplied by g, and E W is found where E is, before g is known.

    With `weights` g is known in the forward; without, the backward needs E for weight and bias once more, and makes
    again what was not kept of it.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, weights, softcap, scale, chunk):
        wants_hidden, *wants = ctx.needs_input_grad[:3]
        dtype = _compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rows = _Rows(hidden.to(dtype), weight.to(dtype), bias, targets, softcap, scale, chunk)
            sums = _Sums(rows, *wants) if any(wants) else None
            logps = torch.empty(len(hidden), dtype=_at_least_fp32(dtype), device=hidden.device)
            pushed = torch.empty_like(rows.hidden) if wants_hidden else None
            kept: torch.Tensor | None = None
            for block in rows.blocks(held=sums is not None):
                keeps = weights is not None or (block.start == 0 and rows.may_keep(block))
                errors = rows.room(block) if sums is not None and keeps else None
                for part in rows.chunks(block):
                    if sums is None and pushed is None:
                        logps[part] = _logps(rows.logits(part), targets[part])
                        continue
                    room = rows.room(part) if errors is None else _within(errors, block, part)
                    logps[part] = rows.errors(part, room)
                    if pushed is not None:
                        pushed[part] = product(room, rows.weight.t())
                if sums is not None and errors is not None and weights is not None:
                    sums.add(block, errors, weights[block])
                elif errors is not None:
                    kept = errors
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        ctx.rows = (softcap, scale, chunk)
        ctx.fused = weights is not None
        if weights is None:
            ctx.save_for_backward(rows.hidden, rows.weight, bias, targets, pushed, kept)
            return logps, None
        ctx.mark_non_differentiable(logps)
        found = (_times(weights, pushed), *((None, None) if sums is None else sums.tensors()))
        ctx.save_for_backward(*(None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes)))
        return logps, (weights * logps).sum()

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        upstream, upstream_total = upstreams
        if ctx.fused:
            made = [None if g is None else g * upstream_total.to(g.dtype) for g in ctx.saved_tensors]
            return (*made, None, None, None, None, None)
        hidden, weight, bias, targets, pushed, kept = ctx.saved_tensors
        grads = [_times(upstream, pushed), None, None]
        if any(ctx.needs_input_grad[1:3]):
            rows = _Rows(hidden, weight, bias, targets, *ctx.rows)
            sums = _Sums(rows, *ctx.needs_input_grad[1:3])
            with torch.autocast(hidden.device.type, enabled=False):
                for block in rows.blocks(held=True):
                    errors = kept if block.start == 0 and kept is not None else rows.room(block)
                    for part in rows.chunks(block) if errors is not kept else ():
                        rows.errors(part, _within(errors, block, part))
                    sums.add(block, errors, upstream[block])
            grads[1:] = sums.tensors()
        grads = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes)]
        return (*grads, None, None, None, None, None)


def _times(g: torch.Tensor, pushed: torch.Tensor | None) -> torch.Tensor | None:
    """-g E W from E W."""
    return None if pushed is None else -g[:, None] * pushed


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


def _few(z: torch.Tensor) -> int:
    """Rows of z that are held in fp32 at a time."""
    return max(1, (AT_ONCE if z.device.type == "cpu" else AT_ONCE_ON_GPU) // z.shape[1])


def _logps(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(z) in fp32 at `targets`, a few rows at a time. z: (C, V) -> (C,)."""
    wide, few = _at_least_fp32(z.dtype), _few(z)
    pieces = zip(z.split(few), targets.split(few))
    return torch.cat([_log_at(torch.softmax(some, 1, wide), some, whose[:, None]) for some, whose in pieces])[:, 0]


def _log_at(p: torch.Tensor, z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p at `targets`, also where p is too small to be held. p = softmax(z): (C, V), targets: (C, 1) -> (C, 1).

    The same number with and without a gradient, whatever the other rows are.
    """
    theirs = p.gather(1, targets)
    held = theirs > HELD
    if p.device.type == "cpu" and bool(held.all()):  # on a GPU to ask would be to wait
        return theirs.log()
    highest = p.amax(1, keepdim=True).log() - z.amax(1, keepdim=True)
    return torch.where(held, theirs.log(), z.gather(1, targets).to(p.dtype) + highest)


@dataclass(frozen=True, slots=True)
class _Rows:
    """N rows before the head, a chunk or a block of chunks at a time. hidden: (N, d), weight: (V, d), targets: (N,)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    softcap: float | None
    scale: float
    chunk: int

    def blocks(self, *, held: bool) -> Iterator[slice]:
        """All rows, in blocks whose errors fit into memory where they are `held`, one chunk at least."""
        size = self.chunk * (max(1, TOGETHER // (self.chunk * len(self.weight))) if held else 1)
        yield from _pieces(slice(0, len(self.hidden)), size)

    def chunks(self, block: slice) -> Iterator[slice]:
        yield from _pieces(block, self.chunk)

    def may_keep(self, block: slice) -> bool:
        """Whether the errors of a block may stay from forward to backward."""
        return (block.stop - block.start) * len(self.weight) <= TOGETHER

    def room(self, part: slice) -> torch.Tensor:
        return self.hidden.new_empty(part.stop - part.start, len(self.weight))

    def logits(self, part: slice, room: torch.Tensor | None = None) -> torch.Tensor:
        """(C, V), in `room` where that may be."""
        z = product(self.hidden[part], self.weight, room)
        return _capped(z, self.bias, self.scale, self.softcap)

    def errors(self, part: slice, out: torch.Tensor) -> torch.Tensor:
        """softmax(z) - onehot(target), through softcap and scale, to `out`, (C, V); log p(target), (C,)."""
        z, targets = self.logits(part, out), self.targets[part]
        few, found = _few(z), []
        for some, whose, room in zip(z.split(few), targets.split(few), out.split(few)):
            error = torch.softmax(some, dim=1, dtype=_at_least_fp32(z.dtype))
            logps = _log_at(error, some, whose[:, None])
            found.append(logps)
            # The target's own error is 1 - p, which rounding would leave nothing of where p is almost 1.
            error.scatter_(1, whose[:, None], torch.expm1(logps))
            if self.softcap is not None:
                error.mul_(1.0 - (some / self.softcap) ** 2)
            if self.scale != 1.0:
                error.mul_(self.scale)
            room.copy_(error)
        return torch.cat(found).squeeze(1)


def _within(whole: torch.Tensor, block: slice, part: slice) -> torch.Tensor:
    """What of the rows of `block` are those of `part`."""
    return whole[part.start - block.start : part.stop - block.start]


def _pieces(whole: slice, size: int) -> Iterator[slice]:
    for a in range(whole.start, whole.stop, size):
        yield slice(a, min(a + size, whole.stop))


class _Sums:
    """The gradient of sum(g * log p) in weight and bias, from the errors of a block after the other."""

    def __init__(self, rows: _Rows, wants_weight: bool, wants_bias: bool) -> None:
        weight, self.rows = rows.weight, rows
        self.wants = (wants_weight, wants_bias)
        # In fp32 the product that has fewer rows is the faster one on CPUs, and its sum is turned round.
        turns = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.shape[0] > weight.shape[1]
        self.turned = turns
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None

    def add(self, block: slice, errors: torch.Tensor, g: torch.Tensor) -> None:
        """errors: (B, V), g: (B,)."""
        minus = -g.to(_at_least_fp32(errors.dtype))[:, None]
        if self.wants[1]:
            for some, theirs in zip(errors.split(CHUNK), minus.split(CHUNK)):
                self.bias = _plus(self.bias, (some * theirs).sum(0))
        if self.wants[0]:
            hidden = self.rows.hidden[block]
            pair = errors.t(), (minus * hidden).to(hidden.dtype).t()
            self.weight = _plus(self.weight, product(*(reversed(pair) if self.turned else pair)))

    def tensors(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Both, each None where it is not wanted."""
        weight, bias = self.weight, self.bias
        if weight is not None and self.turned:
            weight = weight.t()
        if self.wants[0] and weight is None:
            weight = torch.zeros_like(self.rows.weight)
        if self.wants[1] and bias is None and self.rows.bias is not None:
            bias = torch.zeros_like(self.rows.bias)
        return weight, bias


def _plus(sum: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    """In fp32 at least."""
    return more.to(_at_least_fp32(more.dtype)) if sum is None else sum.add_(more)
