"""Losses that users expect of any preference trainer: log-probs or scores in, one loss per pair or row out.

Each is the few lines of its paper and nothing else. Knows nothing about models, batches or rows.
"""

from maypole.train.losses.bradley_terry import bradley_terry
from maypole.train.losses.dpo import dpo
from maypole.train.losses.hinge import hinge
from maypole.train.losses.ipo import ipo
from maypole.train.losses.kto import kto
from maypole.train.losses.orpo import orpo
from maypole.train.losses.pair_preference import pair_preference
from maypole.train.losses.robust import robust
from maypole.train.losses.rpo import rpo
from maypole.train.losses.selm import optimism, selm, xpo
from maypole.train.losses.simpo import simpo
from maypole.train.losses.sppo import sppo, sppo_pointwise

__all__ = [
    "bradley_terry", "dpo", "hinge", "ipo", "kto", "optimism", "orpo", "pair_preference", "robust", "rpo",
    "selm", "simpo", "sppo", "sppo_pointwise", "xpo",
]  # fmt: skip
