"""The loss of pair models: a language model that is shown two answers is to name the better one, in either order."""

import torch


def pair_preference(chosen_first: torch.Tensor, rejected_first: torch.Tensor) -> torch.Tensor:
    """-½ (log π("A" | x, y_w, y_l) + log π("B" | x, y_l, y_w))  (2405.07863, sec. 2.1).

    The paper draws one of the two orders for each pair; here both count half, so that no place is liked more.

    Parameters
    ----------
    chosen_first, rejected_first
        (pairs,) log-probs of the right letter where the better answer stands first, and where it stands second.
    """
    return -(chosen_first + rejected_first) / 2
