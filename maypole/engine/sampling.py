"""From logits to tokens: penalties, filters and one counter-based uniform per token.

The draw of a sequence's token t uses the Philox generator at (seed, t) and the inverse of the cumulative distribution
in float64, in vocabulary order: it depends on nothing that runs beside it. Knows nothing about models or caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from maypole.engine.request import GOLDEN, Sampling

_MASK64 = (1 << 64) - 1


@dataclass(slots=True)
class Draw:
    """What sampling the next token of one sequence depends on besides its logits."""

    sampling: Sampling
    seed: int
    prompt: Sequence[int]
    generated: Sequence[int]
    forbidden: Sequence[int] = field(default_factory=tuple)
    allowed: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled token, its raw log-prob, and the most likely alternatives where they were asked for."""

    token: int
    logprob: float
    top: dict[int, float] | None


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a request with n > 1."""
    return (seed + index * GOLDEN) & _MASK64


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1), of 53 random bits, that decides token `step` of the sequence with `seed`."""
    return float(np.random.Generator(np.random.Philox(key=seed & _MASK64, counter=step)).random())


def draw(logits: torch.Tensor, rows: Sequence[Draw]) -> list[Drawn]:
    """The next token of each row. logits: (B, V), fp32, left unchanged."""
    norm = torch.logsumexp(logits, dim=-1)
    shaped = [i for i, row in enumerate(rows) if _shapes(row)]
    scores = logits
    if shaped:
        scores = logits.clone()
        for i in shaped:
            adjust(scores[i], rows[i])
    greedy = [i for i, row in enumerate(rows) if row.sampling.greedy]
    drawn = [i for i, row in enumerate(rows) if not row.sampling.greedy]
    tokens = np.empty(len(rows), dtype=np.int64)
    if greedy:
        tokens[greedy] = _argmax(scores if not drawn else scores[greedy])
    if drawn:
        probabilities = filtered(scores[drawn], [rows[i].sampling for i in drawn])
        uniforms = [uniform(rows[i].seed, len(rows[i].generated)) for i in drawn]
        tokens[drawn] = inverse_cdf(probabilities, uniforms)
    index = torch.from_numpy(tokens).to(logits.device)
    chosen = (logits.gather(1, index[:, None])[:, 0] - norm).tolist()
    return [
        Drawn(int(tokens[i]), chosen[i], _top(logits[i], norm[i], row.sampling.logprobs)) for i, row in enumerate(rows)
    ]


def adjust(scores: torch.Tensor, row: Draw) -> None:
    """Bias, grammar, penalties and forbidden tokens, in place. scores: (V,).

    The repetition penalty is that of CTRL (arXiv 1909.05858) over prompt and completion; frequency and presence
    penalties are OpenAI's over the completion.
    """
    s = row.sampling
    for token, bias in (s.logit_bias or {}).items():
        scores[int(token)] += bias
    if row.allowed is not None:
        scores.masked_fill_(torch.from_numpy(~row.allowed).to(scores.device), float("-inf"))
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*map(int, row.prompt), *row.generated}), device=scores.device)
        at = scores[seen]
        scores[seen] = torch.where(at < 0, at * s.repetition_penalty, at / s.repetition_penalty)
    if row.generated and (s.frequency_penalty or s.presence_penalty):
        said, counts = np.unique(np.asarray(row.generated), return_counts=True)
        minus = torch.from_numpy(counts * s.frequency_penalty + s.presence_penalty)
        scores[torch.from_numpy(said).to(scores.device)] -= minus.to(scores.device, scores.dtype)
    if row.forbidden:
        scores[torch.tensor(list(row.forbidden), device=scores.device)] = float("-inf")


def filtered(scores: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities after temperature, top_k, min_p, top_p and typical_p. (B, V) -> (B, V) in float64.

    Each filter sees the distribution that the one before it left, renormalised. top_p is nucleus sampling (arXiv
    1904.09751), typical_p locally typical sampling (arXiv 2202.00666), min_p of arXiv 2407.01082.
    """
    z = scores.double() / _column([s.temperature for s in settings], scores)
    vocabulary = z.shape[1]
    ranks = [min(s.top_k, vocabulary) if s.top_k else vocabulary for s in settings]
    if min(ranks) < vocabulary:
        best = torch.topk(z, max(r for r in ranks if r < vocabulary), dim=-1).values
        for i, rank in enumerate(ranks):
            if rank < vocabulary:
                z[i].masked_fill_(z[i] < best[i, rank - 1], float("-inf"))
    if any(s.min_p > 0 for s in settings):
        p = torch.softmax(z, dim=-1)
        least = _column([s.min_p for s in settings], z) * p.max(dim=-1, keepdim=True).values
        z.masked_fill_(p < least, float("-inf"))
    if any(s.top_p < 1 for s in settings):
        p = torch.softmax(z, dim=-1)
        _keep_smallest_set(z, p, -p, [s.top_p for s in settings])
    if any(s.typical_p < 1 for s in settings):
        p = torch.softmax(z, dim=-1)
        information = -torch.log(p)
        entropy = torch.where(p > 0, p * information, 0.0).sum(dim=-1, keepdim=True)
        _keep_smallest_set(z, p, (information - entropy).abs(), [s.typical_p for s in settings])
    return torch.softmax(z, dim=-1)


def inverse_cdf(probabilities: torch.Tensor, uniforms: Sequence[float]) -> np.ndarray:
    """The token at which the cumulative distribution, in vocabulary order, passes each uniform. (B, V) -> (B,)."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    wanted = _column(uniforms, probabilities) * total
    passed = torch.searchsorted(cumulative, wanted, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token with any probability
    return torch.minimum(passed, last)[:, 0].cpu().numpy()


def _keep_smallest_set(z: torch.Tensor, p: torch.Tensor, key: torch.Tensor, mass: Sequence[float]) -> None:
    """Drop from z what is not in the first tokens, in ascending order of `key`, that reach the mass. Rows at 1 stay."""
    order = torch.sort(key, dim=-1, stable=True).indices
    ahead = p.gather(1, order).cumsum(dim=-1) - p.gather(1, order)
    wanted = _column(mass, z)
    dropped = torch.zeros_like(z, dtype=torch.bool).scatter_(1, order, (ahead >= wanted) & (wanted < 1))
    z.masked_fill_(dropped, float("-inf"))


def _shapes(row: Draw) -> bool:
    s = row.sampling
    penalised = s.repetition_penalty != 1.0 or s.frequency_penalty or s.presence_penalty
    return bool(s.logit_bias or penalised or row.forbidden or row.allowed is not None)


def _argmax(scores: torch.Tensor) -> np.ndarray:
    """The lowest id among the largest, which torch promises on no device."""
    if scores.device.type == "cpu":
        return scores.numpy().argmax(axis=-1)
    ids = torch.arange(scores.shape[1], device=scores.device)
    top = scores == scores.max(dim=-1, keepdim=True).values
    return torch.where(top, ids, scores.shape[1]).min(dim=-1).values.cpu().numpy()


def _top(logits: torch.Tensor, norm: torch.Tensor, k: int | None) -> dict[int, float] | None:
    if k is None:
        return None
    best = torch.topk(logits, min(k, logits.shape[0]))
    return dict(zip(best.indices.tolist(), (best.values - norm).tolist()))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64, device=like.device)[:, None]
