"""Which documents the reference model has read, so that none of them is scored by it: a share of the corpus by hash of
id, or ids that are known. A document that a model was trained on looks easier than it is. Knows no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import ConfigError
from maypole.curate.corpus import Corpus, documents
from maypole.curate.perplexity_pruning.selection import hashed

IN_SPLIT = "in the reference's split"
SEEN = "seen by the reference"
FILE = "seen.npy"
"""Beside a reference's weights: sorted hashes of the ids that it was trained on."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the reference has read: documents whose hash of `seed` and id is among the lowest `share`, and those whose
    id's hash is in `seen` (sorted)."""

    share: float = 0.0
    seed: int = 0
    seen: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError("train_reference", self.share, "a share of the documents: above 0, below 1")

    def in_split(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each document is in the share that the reference is trained on."""
        return hashed(ids, f"reference {self.seed}") < np.uint64(int(self.share * 2**64))

    def reasons(self, ids: Sequence[str]) -> list[str | None]:
        """(n,) why a document is not scored, or None."""
        split = self.in_split(ids) if self.share else np.zeros(len(ids), dtype=bool)
        known = np.isin(hashed(ids), self.seen) if len(self.seen) else np.zeros(len(ids), dtype=bool)
        return [IN_SPLIT if a else SEEN if b else None for a, b in zip(split, known)]


def remembered(model: str | Path) -> NDArray[np.uint64]:
    """Sorted hashes of the ids that the reference in directory `model` was trained on; none where it does not say."""
    path = Path(model) / FILE
    return np.load(path, allow_pickle=False) if path.is_file() else np.zeros(0, dtype=np.uint64)


def ids_of(corpus: Corpus) -> NDArray[np.uint64]:
    """Sorted hashes of all ids of a corpus; ConfigError where its documents have none."""
    check_ids(corpus)
    batches = (batch for shard in corpus.shards for batch in documents(shard, corpus.columns))
    return np.unique(np.concatenate([hashed([document.id for document in batch]) for batch in batches]))


def check_ids(corpus: Corpus) -> None:
    """ConfigError unless documents have ids of their own: file and row are others in another corpus."""
    if corpus.columns.id is None:
        raise ConfigError("seen", corpus.shards[0].name, "documents with a column id, or --columns id=NAME")
