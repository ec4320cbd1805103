"""The hinge loss of SLiC-HF on DPO's margin: a pair that is told apart well enough teaches nothing more."""

import torch


def hinge(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """max(0, 1 - βh), h as in `dpo`  (2305.10425, in the normalised form of 2309.06657).

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and the reference, summed over their tokens.
    beta
        1 / the margin beyond which a pair has no gradient.
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return torch.relu(1 - beta * h)
