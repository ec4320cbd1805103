"""Identity preference optimisation: the margin is drawn to a number instead of to infinity."""

import torch


def ipo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    chosen_tokens: torch.Tensor | float = 1.0,
    rejected_tokens: torch.Tensor | float = 1.0,
    *,
    beta: float,
) -> torch.Tensor:
    """(h - 1/(2β))², h the difference of the log ratios  (2310.12036, eq. 17, whose τ is β).

    With token counts h is of ratios per token, the form that its authors recommend and trl uses: otherwise the target
    is the same for short and long answers. Without, it is of sums, as printed.

    Parameters
    ----------
    chosen, rejected, ref_chosen, ref_rejected
        (pairs,) log-probs of the answers under the policy and the reference, summed over their tokens.
    chosen_tokens, rejected_tokens
        (pairs,) numbers of those tokens.
    beta
        1 / twice the margin to reach.
    """
    h = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
    return (h - 1 / (2 * beta)) ** 2
