"""Numbers over the course of a run: one JSON line a step, appended, cut back when a run resumes.

Knows nothing about what is measured.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maypole.core.atomic import fsync_file, write_atomic


class Metrics:
    """The file `path` (``metrics.jsonl``) of a run; lines are ``{"step": n, name: number, …}`` in order of logging."""

    def __init__(self, path: Path, after_log: Callable[[], None] | None = None) -> None:
        self.path = path
        self._after_log = after_log
        self._mended = False

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        """Append one line; NaN and infinity become null, for no JSON reader takes them otherwise."""
        self._mend()
        line = json.dumps({"step": step, **{k: _number(v) for k, v in numbers.items()}})
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self._after_log is not None:
            self._after_log()

    def read(self) -> list[dict]:
        """All whole lines; one that a crash cut off is left out."""
        return _whole_lines(self.path)

    def cut(self, step: int) -> None:
        """Drop lines beyond `step`: what a resumed run is about to do again."""
        lines = self.read()
        kept = [line for line in lines if line["step"] <= step]
        if self.path.exists():
            write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._mended = True

    def sync(self) -> None:
        """Have the lines on the disk, as a checkpoint that counts on them needs."""
        if self.path.exists():
            fsync_file(self.path)

    def _mend(self) -> None:
        """Cut off a last line without its end, which a crash left, before the first line is appended."""
        if self._mended:
            return
        self._mended = True
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)


def _whole_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is nothing, or cut off
    return [json.loads(line) for line in lines if line.strip()]


def _number(value: Any) -> float | int | str | None:
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
