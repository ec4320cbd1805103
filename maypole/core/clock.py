"""What a run has cost so far: seconds and memory, on top of those of the runs it continues. Knows no results."""

import resource
import sys
import time

SAVE_SECONDS = 5.0
"""Seconds between two notes of the time spent so far; a kill forgets at most these."""


class Clock:
    """Seconds and memory of this run on top of those of the runs it continues."""

    def __init__(self, manifest: dict) -> None:
        self._before = {n: manifest.get(n, 0) for n in ("wall_seconds", "cpu_seconds", "peak_rss_bytes")}
        self.resumed = self._before["wall_seconds"] > 0
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()
        self._saved = self._wall

    def due(self) -> bool:
        """Whether it is time for another note."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def read(self) -> dict[str, float | int]:
        """wall_seconds, cpu_seconds and peak_rss_bytes so far, as a manifest has them."""
        self._saved = time.monotonic()
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, kilobytes elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {
            "wall_seconds": round(self._before["wall_seconds"] + self._saved - self._wall, 3),
            "cpu_seconds": round(self._before["cpu_seconds"] + _cpu_seconds() - self._cpu, 3),
            "peak_rss_bytes": max(self._before["peak_rss_bytes"], peak),
        }


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
