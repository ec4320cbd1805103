"""Two players who name answers and a preference that says who wins: the game that self-play preference optimisation
plays, on a table of answers, exactly.

Knows nothing about models: it is what a policy over a few answers should do, to compare with.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maypole.align.preference_matrix import checked

Policy = NDArray[np.float64]


@dataclass(frozen=True)
class Play:
    """Policies (k,) after self-play: the mean of all steps' and the last one, with their duality gaps.

    The guarantee is for `average`. Where preferences go round in a circle `last` orbits and does not converge.
    """

    average: Policy
    last: Policy
    average_gap: float
    last_gap: float


def duality_gap(matrix: ArrayLike, policy: ArrayLike) -> float:
    """By how much the answer that does best against `policy` (k,) wins more than half: 0 at an equilibrium."""
    return float((checked(matrix) @ np.asarray(policy, dtype=np.float64)).max() - 0.5)


def multiplicative_weights(matrix: ArrayLike, *, eta: float, steps: int, start: ArrayLike | None = None) -> Play:
    """π_{t+1}(y) ∝ π_t(y) exp(η P(y ≻ π_t))  (2405.00675, eq. 4.1), from `start`, else from all alike.

    From there the gap of the average is at most ln(k)/(ηT) + η/8 (Freund & Schapire 1999).
    """
    p = checked(matrix)
    policy = np.full(len(p), 1 / len(p)) if start is None else np.asarray(start, dtype=np.float64)
    logits, total = np.log(policy), np.zeros(len(p))
    for _ in range(steps):
        total += policy
        logits += eta * (p @ policy)
        logits -= logits.max()
        policy = np.exp(logits) / np.exp(logits).sum()
    average = total / steps
    return Play(average, policy, duality_gap(p, average), duality_gap(p, policy))


def equilibrium(matrix: ArrayLike) -> tuple[Policy, float]:
    """A policy (k,) that no answer beats, and the game's value to it (½), by linear programming."""
    from scipy.optimize import linprog

    p = checked(matrix)
    k = len(p)
    # Largest v with (πᵀP)_b >= v for every answer b: variables π and v.
    found = linprog(
        c=[*[0.0] * k, -1.0], A_ub=np.column_stack([-p.T, np.ones(k)]), b_ub=np.zeros(k),
        A_eq=[[*[1.0] * k, 0.0]], b_eq=[1.0], bounds=[*[(0.0, 1.0)] * k, (None, None)],
    )  # fmt: skip
    return found.x[:k], float(found.x[k])
