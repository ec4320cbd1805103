"""Optimism: beside a loss on pairs, away from the answer that the reference gives anyway, towards answers not yet seen.

`optimism` is a term by itself and can be added to any loss here that has a reference; `selm` and `xpo` are DPO with it.
"""

import torch

from maypole.train.losses.dpo import dpo


def optimism(
    response: torch.Tensor, ref_response: torch.Tensor, *, weight: float, floor: float | None = None
) -> torch.Tensor:
    """weight · Δ_r, Δ_r = log π(y_r) - log π_ref(y_r), y_r an answer of the reference's own.

    The reward that a policy implies is large on unknown answers where the policy has left y_r: the best case over
    rewards, max_π' E_π'[r] - E_ref[r] - β KL(π' ‖ π_ref), is -β E_ref[Δ_r]  (2405.19332v3, section 4). It has no lower
    bound: a policy pushed too far forgets how y_r is written, down to its end token.

    Parameters
    ----------
    response, ref_response
        (pairs,) log-probs of y_r under the policy and the reference, summed over its tokens.
    weight
        αβ for SELM, α for XPO. Below 0 the policy is drawn to y_r instead.
    floor
        Δ_r below which nothing is pushed any more.
    """
    delta = response - ref_response
    return weight * (delta if floor is None else delta.clamp(min=floor))


def selm(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    response: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    ref_response: torch.Tensor,
    *,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """-log σ(β(Δ_w - Δ_l)) + αβ Δ_r  (2405.19332v3, algorithm 1).

    At the reference the loss is log 2 for every α, and y_r that is also the chosen answer is still learnt where
    α < 1/2.

    Parameters
    ----------
    chosen, rejected, response, ref_chosen, ref_rejected, ref_response
        (pairs,) log-probs of y_w, y_l and y_r under the policy and the reference, summed over their tokens.
    alpha
        How much the unknown attracts, as a share of β; the paper has 1e-4 to 5e-3 with β 0.01.
    beta
        As in `dpo`; it scales both terms.
    """
    pair = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    return pair + optimism(response, ref_response, weight=alpha * beta)


def xpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    response: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    ref_response: torch.Tensor,
    *,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """-log σ(β(Δ_w - Δ_l)) + α Δ_r, y_r drawn from the policy that training began with  (2405.21046, algorithm 1).

    The paper writes log π(y_r) for Δ_r; the difference is a constant.

    Parameters
    ----------
    chosen, rejected, response, ref_chosen, ref_rejected, ref_response
        As in `selm`.
    alpha
        How much the unknown attracts, in nats: SELM's α is this one over β.
    beta
        As in `dpo`.
    """
    pair = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    return pair + optimism(response, ref_response, weight=alpha)
