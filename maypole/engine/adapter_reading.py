"""Adapters are checked and read in threads of their own, a few at a time. Knows nothing about who waits for them."""

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from maypole.engine.adapter_entry import Entry, Job
from maypole.engine.adapter_files import Base
from maypole.engine.adapter_sources import Directory, Found, Source
from maypole.engine.adapters import Adapter

READERS = 2
"""Directories that are read at once; a download holds up nobody but who waits for it."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the files of an adapter say, and how to tell whether they are still the same."""

    found: Found
    stamp: Hashable


@dataclass(frozen=True, slots=True)
class Read:
    """An adapter in the host's memory and on the device; on CPUs that is one."""

    host: Adapter
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an adapter cannot be had, and how to tell whether its files are still those that failed."""

    error: Exception
    stamp: Hashable


class Reader:
    """Reads adapters of `base`, which is set before the first and may be set anew."""

    base: Base

    def __init__(self) -> None:
        self._turns = threading.Semaphore(READERS)

    def _turn(self, source: Source) -> AbstractContextManager[object]:
        return self._turns if isinstance(source, Directory) else nullcontext()

    def check(self, entry: Entry) -> Checked:
        """UserError where the files are not an adapter of the base within the limits."""
        source = entry.source
        assert source is not None
        with self._turn(source):
            stamp = source.stamp()  # before the files: what is written meanwhile is noticed later
            return Checked(source.inspect(self.base, entry.where), stamp)

    def read(self, entry: Entry, found: Found) -> Read:
        """The adapter that was `found`, from the host's memory where that has it."""
        host, source = entry.host, entry.source
        if host is None:
            assert source is not None
            with self._turn(source):
                host = source.read(found, str(entry.target), self.base, entry.where)
        device: torch.device = next(self.base.module.parameters()).device
        return Read(host, host.to(device))

    def begin(self, entry: Entry, job: Job, done: Callable[[Entry, Job, Checked | Read | Failed], None]) -> None:
        """Do `job` beside, and tell `done` what came of it."""
        found, source = entry.found, entry.source
        assert source is not None

        def run() -> None:
            stamp = source.stamp()
            try:
                result = self.check(entry) if found is None else self.read(entry, found)
            except Exception as error:
                result = Failed(error, stamp)
            done(entry, job, result)

        threading.Thread(target=run, name="maypole-adapter", daemon=True).start()
