"""Where adapters come from: folders that the operator opened, directories that the operator named, the hub.

A name that a client gives is never a path: it is looked up among what the folders hold. Knows nothing about when an
adapter is loaded and how long it is kept.
"""

import re
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from maypole.core.errors import UserError
from maypole.engine import adapter_files
from maypole.engine.adapter_files import CONFIG, WEIGHTS, Base, Limits
from maypole.engine.adapters import Adapter
from maypole.engine.settings import ADAPTER_NAME
from maypole.models.hub import fetched

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
HUB_AGAIN = 60.0
"""Seconds after which the hub is asked again whether an adapter has another commit."""


class Found(Protocol):
    """What is known of an adapter before its weights are read."""

    @property
    def config(self) -> Any: ...
    @property
    def rank(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def cost(self) -> int: ...


class Source(Protocol):
    """From where an adapter can be read, and read again. What is not as it should be is a UserError.

    `stamp` is equal as long as there is nothing new to read, and quick to find out; None where that is not known.
    """

    def stamp(self) -> Hashable: ...

    def inspect(self, base: Base, where: str) -> Found: ...

    def read(self, found: Any, name: str, base: Base, where: str) -> Adapter:
        """The adapter in the host's memory, its key a hash of what was read."""
        ...


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory, which with `roots` has to lie in one of them, with all links followed."""

    path: Path
    limits: Limits
    roots: tuple[Path, ...] = ()

    def stamp(self) -> Hashable:
        return adapter_files.stamp(self.path)

    def inspect(self, base: Base, where: str) -> adapter_files.Found:
        path = adapter_files.inside(self.path, self.roots, where) if self.roots else self.path
        return adapter_files.inspect(path, base, self.limits, where)

    def read(self, found: adapter_files.Found, name: str, base: Base, where: str) -> Adapter:
        return adapter_files.load(found, name, base, self.limits, where, torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of the hub, at the commit that its main branch has when it is read."""

    id: str
    limits: Limits

    def stamp(self) -> Hashable:
        return int(time.monotonic() // HUB_AGAIN)

    def inspect(self, base: Base, where: str) -> adapter_files.Found:
        there = fetched(self.id, (CONFIG, WEIGHTS), max_bytes=self.limits.max_bytes)
        return adapter_files.inspect(there, base, self.limits, where)

    def read(self, found: adapter_files.Found, name: str, base: Base, where: str) -> Adapter:
        return adapter_files.load(found, name, base, self.limits, where, torch.device("cpu"))


class Sources:
    """Adapters by name in `roots`, and hub ids where `hub`."""

    def __init__(self, roots: tuple[Path, ...], limits: Limits, *, hub: bool) -> None:
        self._roots, self._limits, self._hub = roots, limits, hub

    def find(self, name: str) -> Source | None:
        """What a name means, None where it means nothing; nothing is read or fetched."""
        if re.fullmatch(ADAPTER_NAME, name):
            at = next((root / name for root in self._roots if (root / name / CONFIG).is_file()), None)
            return None if at is None else Directory(at, self._limits, self._roots)
        return Hub(name, self._limits) if self._hub and _HUB_NAME.fullmatch(name) and ".." not in name else None

    def given(self, source: str | Path) -> Source:
        """What the operator names: a directory anywhere, or a hub id."""
        path = Path(source)
        return Directory(path, self._limits) if path.is_dir() or path.is_absolute() else Hub(str(source), self._limits)

    def allowed(self, path: str, where: str) -> Source:
        """What a client may name: a directory inside the roots; UserError for the rest."""
        for root in self._roots:
            try:
                adapter_files.inside(root / path, self._roots, where)
                here = root.resolve() != (root / path).resolve() and (root / path).is_dir()
            except (OSError, ValueError):  # a NUL, a name too long
                here = False
            if here:
                return Directory(root / path, self._limits, self._roots)
        raise UserError("there is no such adapter", where, "a directory inside the folder that adapters come from")

    def names(self) -> Iterator[str]:
        """What the roots hold at this moment."""
        for root in self._roots:
            for path in sorted(root.iterdir()) if root.is_dir() else ():
                if re.fullmatch(ADAPTER_NAME, path.name) and (path / CONFIG).is_file():
                    yield path.name
