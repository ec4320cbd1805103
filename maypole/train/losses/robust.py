"""Robust DPO: an unbiased estimate of the loss that labels without errors would give."""

import torch
import torch.nn.functional as F


def robust(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> torch.Tensor:
    """(-(1-ε) log σ(βh) + ε log σ(-βh)) / (1-2ε), h as in `dpo`  (2403.00409, §3).

    Its mean over labels that are flipped with probability ε is DPO's loss on the true labels. It may be negative.

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and the reference, summed over their tokens.
    beta
        As in `dpo`.
    label_smoothing
        ε, the share of wrong labels, below 0.5.
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    clean, flipped = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
