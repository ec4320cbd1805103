"""Rows that take a model's time, made chunk by chunk: what is on the disk is never made again. Knows no model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maypole.core.atomic import write_atomic
from maypole.core.progress import track

CHUNK = 64
"""Prompts that are worked on together, always the same ones, so that a resumed run repeats what was cut off exactly."""

Rows = list[dict[str, Any]]


def in_chunks(items: Sequence[int], make: Callable[[list[int]], Rows], keep: Path | None, title: str) -> Rows:
    """The rows that `make` gives for each chunk of `items`, in order; with a folder `keep` they lie there as they come.

    They must be plain data, as JSON has it.
    """
    found: Rows = []
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with track(title, len(items), "prompts") as step:
        for first in range(0, len(items), CHUNK):
            some = list(items[first : first + CHUNK])
            path = None if keep is None else keep / f"{first:08}.json"
            if path is not None and path.is_file():
                rows = json.loads(path.read_bytes())
            else:
                rows = make(some)
                if path is not None:
                    write_atomic(path, json.dumps(rows))
            found += rows
            step(len(some))
    return found
