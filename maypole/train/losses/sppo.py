"""SPPO: each answer's log ratio is drawn to how much more often than half it wins against the policy itself."""

import torch


def sppo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    p_chosen: torch.Tensor | float,
    p_rejected: torch.Tensor | float,
    *,
    eta: float,
) -> torch.Tensor:
    """½ [(a - η(p_w - ½))² + (b - η(p_l - ½))²], the mean of `sppo_pointwise` of both.

    a and b are log π/π_t of the chosen and the rejected answer. Unlike a loss on a - b it says where each of them
    should be. What p is makes the variant: rates of winning against π_t (soft), P(w ≻ l) and P(l ≻ w) (single), 1 and
    0 (hard; trl's `sppo_hard` is twice that, with β = 1/η).

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and π_t, the policy they were drawn from, summed over
        their tokens.
    p_chosen, p_rejected
        (pairs,) in [0, 1].
    eta
        Nats that lie between an answer that always wins and one that always loses; the paper's is 1000, which is
        never reached.
    """
    of_chosen = sppo_pointwise(chosen, ref_chosen, p_chosen, eta=eta)
    return (of_chosen + sppo_pointwise(rejected, ref_rejected, p_rejected, eta=eta)) / 2


def sppo_pointwise(
    completion: torch.Tensor, ref_completion: torch.Tensor, p: torch.Tensor | float, *, eta: float
) -> torch.Tensor:
    """(log π/π_t - η(p - ½))² of single answers  (2405.00675, eq. 4.7, with η/2 for log Z).

    Over all answers its minimum is, once normalised, the step of multiplicative weights π_t exp(ηp)/Z.

    Parameters
    ----------
    completion, ref_completion
        (answers,) log-probs under the policy and π_t, summed over their tokens.
    p
        (answers,) how often each wins against an answer of π_t.
    eta
        As in `sppo`.
    """
    return (completion - ref_completion - eta * (p - 0.5)) ** 2
