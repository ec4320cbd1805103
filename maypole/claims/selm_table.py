"""SELM on a table: a free logit for every answer to every question, so that the loss acts alone.

Knows no network, no tokens and no Adam: rounds of draws, a judge, and plain gradient steps on the loss itself.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maypole.claims.effects import Effect
from maypole.core.seeds import derive
from maypole.train import losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Questions with answers, of which one is said with `said` and one other is best; rewards as in the village."""

    questions: int = 600
    answers: int = 20
    said: float = 0.85
    rounds: int = 20
    steps: int = 8
    learning_rate: float = 1.5
    """With that many steps iterative DPO ends at the P(best) and reward that the sheet's conditions give for it."""
    beta: float = 0.5
    noise: float = 0.12
    candidates: int = 3


def run(seed: int, alpha: float, sample: str, size: Table = Table()) -> dict[str, float]:
    """P(best) and expected reward after all rounds; `sample` is greedy or sample."""
    draw = np.random.default_rng(derive(seed, "table"))
    n, k, every = size.questions, size.answers, np.arange(size.questions)
    rumour = draw.integers(0, k, n)
    best = (rumour + draw.integers(1, k, n)) % k
    rewards = draw.uniform(0, 0.3, (n, k))
    rewards[every, rumour], rewards[every, best] = 0.5, 1.0
    start = np.full((n, k), (1 - size.said) / k)
    start[every, rumour] += size.said
    logits = torch.tensor(np.log(start), requires_grad=True)
    for _ in range(size.rounds):
        reference = logits.detach().log_softmax(1)
        p = reference.exp().numpy()
        drawn = (draw.random((n, size.candidates, 1)) < p.cumsum(1)[:, None]).argmax(2)
        if sample == "greedy":
            drawn[:, 0] = p.argmax(1)
        scores = (rewards / size.noise + draw.gumbel(size=(n, k)))[every[:, None], drawn]
        answers = [drawn[every, scores.argmax(1)], drawn[every, scores.argmin(1)], drawn[:, 0]]
        for _ in range(size.steps):
            logps = logits.log_softmax(1)
            policy, frozen = ([table[every, answer] for answer in answers] for table in (logps, reference))
            loss = losses.selm(*policy, *frozen, alpha=alpha, beta=size.beta).sum()
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits.detach() - size.learning_rate * gradient).requires_grad_()
    p = logits.detach().softmax(1).numpy()
    return {"best": float(p[every, best].mean()), "reward": float((p * rewards).sum(1).mean())}


def table(seed: int, workdir: Path, size: Table = Table()) -> list[Effect]:
    """The order of alphas, the sampled form beside the greedy one, and where it ends badly."""
    greedy = {alpha: run(seed, alpha, "greedy", size) for alpha in (-0.2, 0.0, 0.05, 0.2, 0.5, 1.0)}
    drawn = {alpha: run(seed, alpha, "sample", size) for alpha in (0.0, 0.2)}
    best, reward = "P(best answer)", "expected reward"
    some, none = greedy[0.2], greedy[0.0]
    gains = [found[0.2]["best"] / found[0.0]["best"] for found in (greedy, drawn)]
    order = [-0.2, 0.0, 0.05, 0.2, 0.5]
    made = [
        Effect(f"alpha {b:g} above {a:g}", best, greedy[b]["best"], greedy[a]["best"], 0.0, "difference>=")
        for a, b in itertools.pairwise(order)
    ]
    return [
        *made,
        Effect("alpha 0.2 costs no reward", reward, some["reward"], none["reward"], -0.01, "difference>="),
        Effect("greedy gains more than drawn", f"{best}, 0.2 to 0", gains[0], gains[1], 0.0, "difference>="),
        Effect("alpha 1 ends badly", reward, greedy[1.0]["reward"], none["reward"], -0.1, "difference<=", control=True),
    ]
