"""How far a policy has moved from a reference: KL(policy || reference) over the policy's own completions.

Per token the estimator is r - 1 - log r with r = q/p at the sampled token: unbiased, never negative, and of smaller
variance than -log r (Schulman, "Approximating KL divergence", 2020). Knows nothing about training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import UserError
from maypole.core.seeds import derive
from maypole.core.statistics import Interval, bootstrap
from maypole.engine import Engine, Request, Sampling, ScoreRequest
from maypole.engine.request import Prompt
from maypole.models.language_model import LanguageModel


@dataclass(frozen=True)
class KL:
    """`items` (prompts,): nats per completion, its `tokens` (prompts,); `interval` is that of the mean."""

    items: NDArray[np.float64]
    tokens: NDArray[np.int64]
    interval: Interval

    @property
    def per_completion(self) -> float:
        return self.interval.mean

    @property
    def per_token(self) -> float:
        return float(self.items.sum() / max(self.tokens.sum(), 1))


def kl(
    policy: LanguageModel | Engine,
    reference: LanguageModel | Engine,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 128,
    samples: int = 1,
    adapter: str | None = None,
    seed: int = 0,
) -> KL:
    """KL(policy || reference) on completions of up to `max_tokens` that the policy draws at temperature 1.

    The two may be views of one module (``lm.with_adapter("x")``, ``lm.with_adapter(None)``) and must share their
    tokens. `adapter` is the policy's where it is an engine. With several `samples` a prompt's item is their mean.
    """
    draws = policy if isinstance(policy, Engine) else Engine(policy)
    scores = reference if isinstance(reference, Engine) else Engine(reference)
    if draws.tokenizer.get_vocab() != scores.tokenizer.get_vocab():
        raise UserError("policy and reference have different vocabularies", expected="two models of one tokenizer")
    sampling = Sampling(max_tokens=max_tokens, temperature=1.0, n=samples)
    requests = [
        Request(prompt, replace(sampling, seed=derive(seed, "kl", i)), adapter) for i, prompt in enumerate(prompts)
    ]
    outputs = draws.generate(requests)
    asked = [ScoreRequest(draws.encode(output.request.prompt), [output.token_ids]) for output in outputs]
    scored = [found.logprobs for (found,) in scores.score(asked)]
    return divergence([output.logprobs for output in outputs], scored, samples=samples, seed=seed)


def divergence(
    policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], *, samples: int = 1, seed: int = 0
) -> KL:
    """KL of completions that the policy drew at temperature 1, from what both say of their tokens.

    `samples` completions that follow each other belong to one prompt, whose item is their mean.
    """
    count = len(policy) // samples
    items, tokens = np.zeros(count), np.zeros(count, dtype=np.int64)
    for i, (ours, theirs) in enumerate(zip(policy, reference, strict=True)):
        log_ratio = np.subtract(theirs, ours)
        items[i // samples] += float((np.expm1(log_ratio) - log_ratio).sum()) / samples
        tokens[i // samples] += len(ours)
    return KL(items, tokens, bootstrap(items, seed=seed))
