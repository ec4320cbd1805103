"""Attention to some of the keys, with what it takes to join it to attention to others: the log of its weights' sum.

Where torch has a kernel that tells both, it is that; it is tried once on random numbers and left alone where it does
not agree with the plain form. Knows nothing about caches, sequences or steps.
"""

import functools
from dataclasses import dataclass, field

import torch

from maypole.models.packing import PackedPlan, allowed
from maypole.models.plan import AttentionSpec

Partial = tuple[torch.Tensor, torch.Tensor]
"""Output (..., d) of attention to some of the keys, and the log of its weights' sum (...)."""

MUCH = 2**18
"""Numbers of keys from which on they come from memory and not from a cache on CPUs."""
_ALIGNED = 16
"""Rows of a bias begin at a multiple of so many numbers, as kernels on GPUs want it."""


def bias_of(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `seen` (..., K), minus infinity elsewhere."""
    keys = seen.shape[-1]
    bias = torch.zeros(*seen.shape[:-1], keys + -keys % _ALIGNED, dtype=dtype, device=seen.device)[..., :keys]
    return bias.masked_fill_(~seen, float("-inf"))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor | None
) -> Partial:
    """q: (n, kv_heads, Q, d), k and v: (n, kv_heads, K, d), bias: to (n, kv_heads, Q, K) -> (..., d), (...).

    Every query must see a key.
    """
    return _fused(q, k, v, spec.scaling, bias) if _fits(q, k, v, spec) else explicit(q, k, v, spec, bias)


def explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor | None
) -> Partial:
    """`attend` in plain operations; a query may see no key at all."""
    scores = torch.matmul(q, k.transpose(2, 3)) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if bias is not None:
        scores = scores + bias
    wide = scores.to(wide_of(scores.dtype))
    top = wide.amax(dim=-1, keepdim=True).clamp_min(-1e30)  # a row that sees no key here has only -inf
    weights = (wide - top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    out = torch.matmul((weights / total.clamp_min(1e-30)).to(v.dtype), v)
    return out, (top + total.log()).squeeze(-1)


def in_order(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, bias: torch.Tensor | None, *, partly: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` of few queries to so many keys that reading them is what takes the time: as products of the keys with
    the queries and of the weights with the values, which read both as they stand in memory.

    The log of the weights' sum only where these are part of the keys.
    """
    n, kv, few, d = q.shape
    keys, values, asked = k.flatten(0, 1), v.flatten(0, 1), q.reshape(n * kv, few, d).transpose(1, 2)
    scores = torch.bmm(keys, asked).mul_(spec.scaling).transpose(1, 2).reshape(n, kv, few, -1)
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores, dim=-1, dtype=wide_of(scores.dtype))
    out = torch.bmm(weights.to(values.dtype).flatten(0, 1), values).view(n, kv, few, -1)
    # The largest weight is exp(the largest score - the log of the sum), and never small.
    return out, scores.amax(dim=-1).to(weights.dtype) - weights.amax(dim=-1).log() if partly else None


def together(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, seen: "Seen | None" = None
) -> Partial:
    """Many tokens to the same keys, all of them or those in `seen`. q: (n, heads, d), k and v: (kv_heads, K, d)."""
    n, heads, d = q.shape
    kv = k.shape[0]
    fold = heads // kv
    q = q.view(n, kv, fold, d).permute(1, 2, 0, 3).reshape(1, kv, fold * n, d)
    run = attend if seen is None or not seen.blind else explicit
    out, logsum = run(q, k[None], v[None], spec, None if seen is None else seen.bias(fold, q.dtype))
    out = out.reshape(kv, fold, n, -1).permute(2, 0, 1, 3).reshape(n, heads, -1)
    return out, logsum.reshape(kv, fold, n).permute(2, 0, 1).reshape(n, heads)


def documents(plan: PackedPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> Partial:
    """Tokens of several documents, each to those before it and itself. q: (T, heads, d), k and v: (T, kv_heads, d)."""
    heads, fold = q.shape[1], q.shape[1] // k.shape[1]
    outs, logsums = [], []
    for own_q, *own in plan.rows_of(q, k, v):
        n, length = own_q.shape[:2]
        rows = [own_q, *(x.repeat_interleave(fold, 2) if fold > 1 else x for x in own)]
        window = None if spec.sliding_window is None or spec.sliding_window >= length else spec.sliding_window
        out, logsum = _causal(*(x.transpose(1, 2) for x in rows), spec, window)
        outs.append(out.transpose(1, 2).reshape(n * length, heads, -1))
        logsums.append(logsum.transpose(1, 2).reshape(n * length, heads))
    out, logsum = torch.cat(outs), torch.cat(logsums)
    return (out, logsum) if plan.identity else (out.index_select(0, plan.inverse), logsum.index_select(0, plan.inverse))


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, window: int | None) -> Partial:
    """q, k and v: (n, heads, L, d)."""
    if window is None and _fits(q, k, v, spec):
        return _fused(q, k, v, spec.scaling, None, causal=True)
    return attend(q, k, v, spec, bias_of(allowed(q.shape[2], window, q.device), q.dtype)[None, None])


@dataclass(slots=True)
class Seen:
    """Which keys each of some tokens sees (n, K); `blind` says that a token may see none of them."""

    mask: torch.Tensor
    blind: bool = False
    _biases: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def bias(self, fold: int, dtype: torch.dtype) -> torch.Tensor:
        """(fold * n, K) additive, made once for all layers."""
        if (fold, dtype) not in self._biases:
            self._biases[fold, dtype] = bias_of(self.mask.repeat(fold, 1), dtype)
        return self._biases[fold, dtype]


def joined(a: Partial, b: Partial) -> Partial:
    """Attention to both sets of keys."""
    weight = torch.sigmoid(b[1] - a[1]).unsqueeze(-1)
    return torch.lerp(a[0], b[0], weight.to(a[0].dtype)), torch.logaddexp(a[1], b[1])


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> bool:
    d = k.shape[-1]
    return spec.softcap is None and d == v.shape[-1] and d % 8 == 0 and _agrees(q.device, q.dtype)


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, bias: torch.Tensor | None, causal: bool = False
) -> Partial:
    aten = torch.ops.aten
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scaling)
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    out, logsum, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scaling)
    return out, logsum[..., : q.shape[2]]


@functools.cache
def _agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the kernel for `device`, and it is right."""
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and dtype not in (torch.float32, torch.float64)):
        return False  # on CPUs it is slow in half precision
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, generator=draw).to(device, dtype) for n in (2, 21, 21))
    seen = torch.arange(21, device=device) < torch.tensor([[1], [9], [21]], device=device)
    spec = AttentionSpec(layer=0, scaling=0.3)
    near = 1e-5 if wide_of(dtype) == dtype else 2e-2
    try:
        for bias in (None, bias_of(seen, dtype)[:, None, None]):
            found = _fused(q, k, v, spec.scaling, bias)
            wanted = explicit(q.double(), k.double(), v.double(), spec, None if bias is None else bias.double())
            if not all(torch.allclose(f.double(), w, rtol=near, atol=near) for f, w in zip(found, wanted)):
                return False
        found = _fused(k, k, v, spec.scaling, None, causal=True)
        wanted = explicit(k.double(), k.double(), v.double(), spec, bias_of(allowed(21, None, device), torch.float64))
        return all(torch.allclose(f.double(), w, rtol=near, atol=near) for f, w in zip(found, wanted))
    except (RuntimeError, AttributeError, TypeError):
        return False
