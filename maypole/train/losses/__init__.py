"""Losses that users expect of any preference trainer: sums of token log-probs in, one loss per pair or row out.

Each is the few lines of its paper and nothing else. Knows nothing about models, batches or rows.
"""

from maypole.train.losses.dpo import dpo
from maypole.train.losses.hinge import hinge
from maypole.train.losses.ipo import ipo
from maypole.train.losses.kto import kto
from maypole.train.losses.orpo import orpo
from maypole.train.losses.robust import robust
from maypole.train.losses.selm import optimism, selm, xpo
from maypole.train.losses.simpo import simpo
from maypole.train.losses.sppo import sppo, sppo_pointwise

__all__ = [
    "dpo", "hinge", "ipo", "kto", "optimism", "orpo", "robust", "selm", "simpo", "sppo", "sppo_pointwise", "xpo",
]  # fmt: skip
