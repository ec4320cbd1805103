"""ORPO: supervised fine-tuning on the chosen answer, with a penalty on the odds of the rejected one."""

import math

import torch
import torch.nn.functional as F


def orpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """-log P(y_w) - β log σ(log odds(y_w) - log odds(y_l)), odds = P/(1-P)  (2403.07691, eqs. 4, 6 and 7).

    log P(y) is the mean log-prob of its tokens, as in the paper's eq. 1; β is its λ.

    Parameters
    ----------
    chosen, rejected
        (pairs,) log-probs of the answers, summed over their tokens.
    chosen_tokens, rejected_tokens
        (pairs,) numbers of those tokens.
    beta
        Weight of the odds ratio beside the likelihood of the chosen answer; 0.1 to 1.
    """
    log_w, log_l = chosen / chosen_tokens, rejected / rejected_tokens
    log_odds_ratio = (log_w - log_l) - (_log1mexp(log_w) - _log1mexp(log_l))
    return -log_w - beta * F.logsigmoid(log_odds_ratio)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, exact where exp(x) is near 0 and where it is near 1."""
    far = x < -math.log(2)
    # Both branches are computed: each gets only what it can take, or the other's gradient would be NaN.
    near_zero = torch.log1p(-torch.exp(torch.where(far, x, -1.0)))
    near_one = torch.log(-torch.expm1(torch.where(far, -0.5, x)))
    return torch.where(far, near_zero, near_one)
