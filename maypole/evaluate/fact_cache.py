"""What a model has said already, by the content it was asked about: one SQLite file that may be deleted at any time.

Knows nothing about models; a key must name all that decides its value.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maypole.core.errors import UserError
from maypole.core.identity import cache_dir

AT_ONCE = 500
"""Keys looked up by one statement; SQLite allows about a thousand."""


class FactCache:
    """Values by key, shared by processes. Each is on the disk when `remember` returns.

    Parameters
    ----------
    path
        The file; default ``facts.sqlite`` in the cache directory.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else cache_dir("facts") / "facts.sqlite"

    def remember(self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """The value of each key; `compute` is given the places of those that are not known, each key once."""
        with self._open() as file:
            known = self._read(file, list(dict.fromkeys(keys)))
        new = computed(keys, compute, known)
        if new:
            with self._open() as file:
                rows = [(key, json.dumps(value)) for key, value in new.items()]
                file.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
        known |= new
        return [known[key] for key in keys]

    def _read(self, file: sqlite3.Connection, keys: list[str]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            marks = ",".join("?" * len(some))
            for key, value in file.execute(f"SELECT key, value FROM facts WHERE key IN ({marks})", some):
                known[key] = json.loads(value)
        return known

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose work is kept if the block ends well."""
        file: sqlite3.Connection | None = None
        try:
            file = sqlite3.connect(self.path, timeout=60)
            with file:
                file.execute("CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
                yield file
        except sqlite3.DatabaseError as error:
            raise UserError(f"the cache cannot be used: {error}", str(self.path), "delete it") from error
        finally:
            if file is not None:
                file.close()


def computed(
    keys: Sequence[str], compute: Callable[[list[int]], Sequence[Any]], known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Key -> value of those keys that are not `known`, equal ones computed once."""
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        if known is None or key not in known:
            first.setdefault(key, place)
    return dict(zip(first, compute(list(first.values())), strict=True)) if first else {}
