"""Sequences with common beginnings as one tree of tokens, so that what they share is computed once. Knows no model."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """`tokens` (T,) holds every distinct prefix position once; `paths[i]` are the slots of sequence i, in order.

    `starts[i]` says how much of path i another sequence brings along: in every path the slots from there on are its
    own. `group` (T,) is the group of each token, by rank of first appearance.
    """

    tokens: Ids
    paths: tuple[Ids, ...]
    starts: tuple[int, ...]
    group: Ids

    @property
    def positions(self) -> Ids:
        """(T,) position of each token in its sequences."""
        positions = np.empty(len(self.tokens), dtype=np.int64)
        for path, start in zip(self.paths, self.starts):
            positions[path[start:]] = np.arange(start, len(path))
        return positions


def shared_length(a: Ids, b: Ids) -> int:
    """How many tokens the two begin with in common."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def lexicographic(sequences: Sequence[Ids], groups: Sequence[Hashable] | None = None) -> list[int]:
    """Order in which neighbours share most: by group (rank of first appearance), then by tokens."""
    rank: dict[Hashable, int] = {}
    ranks = [0] * len(sequences) if groups is None else [rank.setdefault(g, len(rank)) for g in groups]
    return sorted(range(len(sequences)), key=lambda i: (ranks[i], sequences[i].astype(">u4").tobytes()))


def neighbours(sequences: Sequence[Ids], groups: Sequence[Hashable], limit: int) -> Iterator[list[int]]:
    """Batches of at most `limit` distinct tokens (or one longer sequence), those together that share most."""
    batch: list[int] = []
    tokens = 0
    for i in lexicographic(sequences, groups):
        shared = 0
        if batch and groups[batch[-1]] == groups[i]:
            shared = shared_length(sequences[batch[-1]], sequences[i])
        new = len(sequences[i]) - shared
        if batch and tokens + new > limit:
            yield batch
            batch, tokens, new = [], 0, len(sequences[i])
        batch.append(i)
        tokens += new
    if batch:
        yield batch


def prefix_tree(sequences: Sequence[Ids], groups: Sequence[Hashable] | None = None, *, least: int = 1) -> PrefixTree:
    """The tree of `sequences` (each (n,), n > 0); only sequences of one group share slots, and `least` of them or more.

    Rows that continue a shared beginning attend more slowly than whole ones, so a shared BOS alone is not worth it.
    """
    rank: dict[Hashable, int] = {}
    ranks = [0] * len(sequences) if groups is None else [rank.setdefault(g, len(rank)) for g in groups]
    paths: list[Ids] = [np.empty(0, dtype=np.int64)] * len(sequences)
    starts = [0] * len(sequences)
    pieces: list[Ids] = []
    members: list[Ids] = []
    size, before = 0, -1
    for i in lexicographic(sequences, groups):
        ids = sequences[i]
        shared = shared_length(sequences[before], ids) if before >= 0 and ranks[before] == ranks[i] else 0
        shared = shared if shared >= least else 0
        own = len(ids) - shared
        trunk = paths[before][:shared] if shared else np.empty(0, dtype=np.int64)
        paths[i] = np.concatenate([trunk, np.arange(size, size + own)])
        starts[i] = shared
        pieces.append(ids[shared:])
        members.append(np.full(own, ranks[i], dtype=np.int64))
        size += own
        before = i
    return PrefixTree(np.concatenate(pieces), tuple(paths), tuple(starts), np.concatenate(members))
