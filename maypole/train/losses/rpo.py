"""DPO that also holds on to what it chose: the chosen answer's likelihood beside the margin."""

import torch

from maypole.train.losses.dpo import dpo


def rpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    *,
    beta: float,
    rpo_alpha: float,
) -> torch.Tensor:
    """DPO's loss - α log π(chosen)/|chosen|  (2404.19733, eq. 1).

    The margin alone may be widened by two answers that both become less likely; the second term holds the chosen one.

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and the reference, summed over their tokens.
    chosen_tokens
        (pairs,) numbers of those tokens.
    beta
        How strongly the policy is held to the reference.
    rpo_alpha
        α, the weight of a token's likelihood beside DPO's loss; the paper takes 1.
    """
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta) - rpo_alpha * chosen / chosen_tokens
