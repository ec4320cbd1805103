"""SimPO: preferences without a reference, by the mean log-prob of a token."""

import torch
import torch.nn.functional as F


def simpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
    gamma: float,
) -> torch.Tensor:
    """-log σ(β (log π(y_w)/|y_w| - log π(y_l)/|y_l|) - γ)  (2405.14734, eq. 6).

    Parameters
    ----------
    chosen, rejected
        (pairs,) log-probs of the answers, summed over their tokens.
    chosen_tokens, rejected_tokens
        (pairs,) numbers of those tokens.
    beta
        Scale of the reward; 2 to 2.5, much more than in `dpo`, because it is per token.
    gamma
        By how much the chosen answer's reward should be ahead.
    """
    return -F.logsigmoid(beta * (chosen / chosen_tokens - rejected / rejected_tokens) - gamma)
