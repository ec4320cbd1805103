"""KTO: answers that are good or bad by themselves, weighed as people weigh gains and losses."""

import torch


def kto(
    completion: torch.Tensor,
    ref_completion: torch.Tensor,
    label: torch.Tensor,
    kl: torch.Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """λ_D (1 - σ(β(r - z))) for a good answer, λ_U (1 - σ(β(z - r))) for a bad one  (2402.01306, eqs. 7 and 8).

    r = log π/π_ref of the answer; z ≥ 0 estimates KL(π ‖ π_ref), the point from which gains and losses count.

    Parameters
    ----------
    completion, ref_completion
        (rows,) log-probs of the answers under the policy and the reference, summed over their tokens.
    label
        (rows,) bool, True where the answer is good.
    kl
        z: the mean log ratio of answers to other prompts, not below 0; no gradient flows into it.
    beta
        As in `dpo`.
    desirable_weight, undesirable_weight
        λ_D and λ_U; times the number of good and bad answers they should be about equal.
    """
    gain = beta * (completion - ref_completion - kl)
    good, bad = 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain)
    return torch.where(label, desirable_weight * good, undesirable_weight * bad)
