"""The texts that a tour chooses from: its corpus, and among Python's documentation as much that is none.

Noise and boilerplate come from the village's web in the shares of its preset "web", a document as long as one of the
corpus, so that length gives none away. A user's own texts stand as they are. Knows nothing about models.
"""

from collections.abc import Iterator

import numpy as np

from maypole.core.seeds import derive
from maypole.tour.corpus import Corpus
from maypole.village.draws import Draws
from maypole.village.web import DIRTY, DOMAINS, PRESETS
from maypole.village.world import World

Row = dict[str, str]
"""`id`, `domain` and `text`."""


def mixture(corpus: Corpus, documents: int, noise: int, seed: int) -> list[Row]:
    """`documents` of the corpus, whose domain is its name, and `noise` others, in an order drawn by `seed`."""
    drawn = np.random.default_rng(derive(seed, "candidates")).permutation(len(corpus.train))[:documents]
    texts: list[str] = corpus.train.select(drawn.tolist())["text"]
    rows = [{"domain": corpus.name, "text": text} for text in texts]
    rows += _noise([len(text) for text in texts], noise, seed)
    order = np.random.default_rng(derive(seed, "mixture")).permutation(len(rows))
    return [{"id": str(i), **rows[place]} for i, place in enumerate(order.tolist())]


def _noise(lengths: list[int], count: int, seed: int) -> Iterator[Row]:
    """Lines of one kind until there are as many characters as in a document of the corpus."""
    world, draws = World(0), Draws(seed, "noise")
    shares = {name: share for name, share in PRESETS["web"].items() if name in DIRTY}
    for _ in range(count):
        domain, length = draws.weighted(list(shares), list(shares.values())), draws.pick(lengths)
        lines: list[str] = []
        while sum(map(len, lines)) < length:
            lines.append(DOMAINS[domain](world, draws).strip())
        yield {"domain": domain, "text": "\n".join(lines)}
