"""Direct preference optimisation, and its conservative form for labels that may be wrong."""

import torch
import torch.nn.functional as F


def dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-(1-ε) log σ(βh) - ε log σ(-βh), h = (log π/π_ref)(chosen) - (log π/π_ref)(rejected)  (2305.18290, eq. 7).

    With ε > 0 this is cDPO: the label is taken to be wrong with probability ε, and the margin that the model is
    drawn to is finite, log((1-ε)/ε)/β (Mitchell 2023, "A note on DPO with noisy preferences").

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and the reference, summed over their tokens.
    beta
        How strongly the policy is held to the reference; 0.01 to 0.5.
    label_smoothing
        ε, below 0.5.
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
