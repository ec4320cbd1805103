"""The Bradley-Terry loss of reward models: the better answer's score is to be the higher one."""

import torch
import torch.nn.functional as F


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor | float = 0.0,
    *,
    center: float = 0.0,
) -> torch.Tensor:
    """-log σ(r_w - r_l - m) + c (r_w + r_l)²  (2405.07863, sec. 2.1; m as in 2307.09288, eq. 2; c as in 2312.09244).

    Only differences of scores of one prompt are learnt: whatever is added to all of a prompt's scores changes nothing,
    unless c holds them around zero.

    Parameters
    ----------
    chosen, rejected
        (pairs,) scores r_w and r_l of the answers.
    margin
        m, (pairs,) or one for all: by how much the better answer should be ahead.
    center
        c; 0.01 where scores of different prompts are to be comparable.
    """
    return -F.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2
