"""Several sources as one stream of rows, each with its weight.

Row i comes from source k with probability ``weights[k] / sum(weights)``, drawn by (seed, i): a weight is the expected
share of *rows*, whatever the sizes of the sources and the lengths of their rows. No row is used twice. The stream ends
where the source drawn next has no row left, so that the shares hold to the end; what the others still had is unused.
Knows nothing about files or row types.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import pyarrow as pa

from maypole.core.seeds import uniform
from maypole.data.blocks import ROWS_PER_BLOCK

_log = logging.getLogger(__name__)


def interleave(
    streams: Sequence[Iterator[pa.Table]],
    weights: Sequence[float],
    seed: int,
    fit: Callable[[pa.Table], pa.Table],
) -> Iterator[pa.Table]:
    """Tables of up to 1000 rows drawn from `streams`; `fit` gives every table the schema of all seen so far."""
    queues = [_Queue(stream, fit) for stream in streams]
    bounds = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1]
    for start in count(step=ROWS_PER_BLOCK):
        draws = [uniform(seed, "mix", row) for row in range(start, start + ROWS_PER_BLOCK)]
        chosen = np.searchsorted(bounds, draws, side="right")
        end = len(chosen)
        for index, queue in enumerate(queues):
            places = np.flatnonzero(chosen == index)
            available = queue.fill(len(places))
            if available < len(places):
                end = min(end, int(places[available]))
        chosen = chosen[:end]
        if end:
            parts = [queue.take(int(np.sum(chosen == index))) for index, queue in enumerate(queues)]
            whole = pa.concat_tables([fit(part) for part in parts]).combine_chunks()
            place = np.empty(end, dtype=np.int64)
            place[np.argsort(chosen, kind="stable")] = np.arange(end)
            yield whole.take(place)
        if end < ROWS_PER_BLOCK:
            _log.info("the mix ends after %d rows, where one source has no more", start + end)
            return


class _Queue:
    """Rows of one stream that were read and not yet used."""

    def __init__(self, stream: Iterator[pa.Table], fit: Callable[[pa.Table], pa.Table]) -> None:
        self._stream, self._fit = stream, fit
        self._waiting: list[pa.Table] = []

    def fill(self, rows: int) -> int:
        """Read until `rows` rows wait, or the stream ends; the number that waits, at most `rows`."""
        waiting = sum(len(table) for table in self._waiting)
        while waiting < rows and (table := next(self._stream, None)) is not None:
            self._waiting.append(table)
            waiting += len(table)
        return min(waiting, rows)

    def take(self, rows: int) -> pa.Table:
        """The first `rows` rows that wait."""
        whole = (
            pa.concat_tables([self._fit(table) for table in self._waiting])
            if self._waiting
            else self._fit(pa.table({}))
        )
        self._waiting = [whole.slice(rows)] if rows < len(whole) else []
        return whole.slice(0, rows)
