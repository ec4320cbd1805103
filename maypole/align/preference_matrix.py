"""Who beats whom among the answers to one prompt: matrices P[a, b] = P(a beats b) of shape (..., k, k).

P + Pᵀ = 1 with ½ on the diagonal; nothing says that they are transitive. Knows nothing about judges or models.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-4
"""By how much P + Pᵀ may differ from 1: probabilities that were stored with four digits pass."""


def from_scores(scores: ArrayLike) -> NDArray[np.float64]:
    """Bradley-Terry: σ(score(a) - score(b)) of scores (..., k), which is always transitive."""
    s = np.asarray(scores, dtype=np.float64)
    return np.exp(-np.logaddexp(0, s[..., None, :] - s[..., :, None]))


def win_rates(matrix: ArrayLike) -> NDArray[np.float64]:
    """(..., k): how often each answer beats one drawn from all k, itself included; their mean is ½.

    ValueError where `matrix` is no preference matrix of two answers or more.
    """
    return checked(matrix).mean(axis=-1)


def checked(matrix: ArrayLike) -> NDArray[np.float64]:
    """`matrix` as it is; ValueError where it is no preference matrix of two answers or more."""
    p = np.asarray(matrix, dtype=np.float64)
    if p.ndim < 2 or p.shape[-1] != p.shape[-2] or p.shape[-1] < 2:
        shape = " × ".join(map(str, p.shape))
        raise ValueError(f"a preference matrix is k × k with two answers or more, found {shape}")
    if not ((p >= 0) & (p <= 1)).all():  # NaN too
        raise ValueError(f"a probability is not in [0, 1]: {p[~((p >= 0) & (p <= 1))][0]}")
    off = float(np.abs(p + p.swapaxes(-1, -2) - 1).max())
    if off > TOLERANCE:
        raise ValueError(f"P(a, b) + P(b, a) is 1 off by {off:.2g}; the most is {TOLERANCE:g}")
    return p
