"""The adapters that requests may name: loaded when the first one asks, kept while there is room, read again later.

Files are checked and read by threads of their own, so that no step waits for a disk; the scheduler asks once a step
whose turn it is (`exchange`). Tiers: the device, on accelerators the host's memory behind it, and the disk; on CPUs
device and host are the same memory, one tier less. An error is told to everybody who waits for that adapter and then
forgotten, so that the next request tries again. Knows nothing about prompts.
"""

import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maypole.core.errors import UserError
from maypole.engine.adapter_entry import AdapterStatus, Entry, Job
from maypole.engine.adapter_files import Base, Limits
from maypole.engine.adapter_places import Places
from maypole.engine.adapter_reading import Checked, Failed, Read, Reader
from maypole.engine.adapter_sources import Found, Source, Sources
from maypole.engine.adapters import Adapter
from maypole.engine.merging import Members
from maypole.engine.request import Merged, Target, named_in
from maypole.engine.settings import AdapterConfig

STRANGE = 256
"""Names that are remembered though nothing was found behind them: somebody may be about to be told."""
MERGES = 256
"""Merged adapters that are known at once; the longest unused are forgotten first."""


@dataclass(frozen=True, slots=True)
class Engaged:
    """The engine that a store is for; but for `wake` its functions are called with its `lock` held.

    `wanted` is what waiting requests ask for, the first come first, `in_use` what requests run on; `forget` is told of
    an adapter that leaves the device, `cancel` ends the requests of a target; `wake` says that something was loaded, or
    could not be.
    """

    lock: AbstractContextManager[None]
    wanted: Callable[[], Collection[Target]]
    in_use: Callable[[], Collection[Adapter]]
    forget: Callable[[Adapter], None]
    cancel: Callable[[Target], None]
    wake: Callable[[], None]


class AdapterStore(Collection[str]):
    """The adapters of one engine by name; `len`, `in` and iteration are over those that requests may name.

    Whoever takes both locks takes the engine's first. No file is touched while either is held.
    """

    def __init__(self, config: AdapterConfig, engine: Engaged, *, clock: Callable[[], float] = time.monotonic) -> None:
        limits = Limits.of(config)
        self._sources = Sources(tuple(Path(root) for root in config.roots), limits, hub=config.hub)
        self._engine, self._clock = engine, clock
        self._places = Places(config, engine.forget, clock)
        self._lock = threading.RLock()
        self._reader = Reader()
        self._entries: dict[Target, Entry] = {}
        self._replaced: set[Entry] = set()
        self._removed: set[str] = set()
        self._versions: dict[Target, tuple[Hashable, int]] = {}
        self._base_version = 0
        self.updates = 0
        self.draining = False
        """Whether something is to be dropped once nobody uses it."""

    # What users call

    def add(self, name: str, source: str | Path, *, pin: bool = False) -> None:
        """Let requests name the adapter of a directory or hub id, in place of what had this name.

        It is read and checked now, beside what runs; with `pin` it stays loaded, else while there is room.
        """
        self._add(Entry(name, self._sources.given(source), there=True, pinned=pin))

    def add_allowed(self, name: str, path: str) -> None:
        """`add` for who may only name what lies in the roots."""
        self._add(Entry(name, self._sources.allowed(path, f"adapter {name!r}"), there=True))

    def remove(self, name: str, *, drain: bool = True) -> None:
        """Take the adapter away: no new request may name it; it is gone when those it has are done, or cancelled."""
        if name not in self:
            raise self._unknown(name, "")
        with self._engine.lock:
            with self._lock:
                self._removed.add(name)
                leaving = [entry for target, entry in self._entries.items() if name in named_in(target)]
                for entry in leaving:
                    entry.leaving = self.draining = True
            for entry in leaving if not drain else ():
                self._engine.cancel(entry.target)
            self.reap()
        self._engine.wake()

    def list(self) -> list[AdapterStatus]:
        """Every adapter that a request may name, and those that are draining, by name."""
        found = list(self._sources.names())
        with self._lock:
            named = {t: entry for t, entry in self._entries.items() if entry.there and isinstance(t, str)}
            for name in found:
                if name not in named and name not in self._removed:
                    named[name] = self._entries.get(name) or Entry(name, None)
            return [named[name].status(self._clock()) for name in sorted(named)]

    def may_ask(self, name: str) -> bool:
        """Whether a request may name it: what the store contains, and hub ids that nobody has named yet."""
        return name in self or (name not in self._removed and self._sources.find(name) is not None)

    def stats(self) -> Mapping[str, float]:
        """Adapters on the device and their bytes; loads, the seconds they took, and evictions, so far."""
        with self._lock:
            ready = [e.adapter for e in (*self._entries.values(), *self._replaced) if e.adapter is not None]
            on_device = {"active": len(ready), "bytes": sum(adapter.bytes for adapter in ready)}
            return {**on_device, **self._places.stats()}

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        entry = self._entries.get(name)
        if entry is not None and (entry.there or entry.leaving):
            return not entry.leaving
        return "/" not in name and name not in self._removed and self._sources.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([status.id for status in self.list() if status.state != "draining"])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # What the engine calls

    def aim(self, base: Base, given: Mapping[str, Adapter]) -> None:
        """`base` is what adapters add to from now on. `given` came with it; what came from files is read anew."""
        with self._lock:
            self._reader.base = base
            self._places.clear()
            self._replaced = set()
            self._entries = {t: e if e.source is None else e.again() for t, e in self._entries.items()}
            for name, adapter in given.items():
                self._entries[name] = Entry(name, None, there=True, adapter=adapter, key=adapter.key)

    def base_changed(self) -> int:
        """The version of base weights that are new."""
        with self._lock:
            self._base_version = self._count()
            return self._base_version

    def put(self, name: str, adapter: Adapter) -> int:
        """An adapter that lives in memory until it is replaced or removed; its version. The engine's lock is held."""
        with self._lock:
            entry = Entry(name, None, there=True, version=self._count(), adapter=adapter, key=adapter.key)
            self._versions[name] = adapter.key, entry.version
            self._replace(entry)
            self.reap()
            return entry.version

    def loaded(self, target: Target | None) -> Adapter | None:
        """The adapter of that name where it is in memory."""
        entry = self._entries.get(target) if target is not None else None
        return None if entry is None else entry.adapter or entry.host

    def ask(self, target: Target, where: str) -> None:
        """A request for `target` comes: UserError where nothing has that name; the rest goes on beside."""
        with self._asked(target, where) as entry:
            self._begin(entry)

    def now(self, target: Target, where: str) -> Adapter:
        """The adapter itself, read in this thread where it is not in memory, and kept where there is room."""
        with self._asked(target, where) as entry:
            ready, found, stamp = entry.adapter, entry.found, entry.stamp
        if ready is not None:
            return ready
        begun = self._clock()
        checked = self._reader.check(entry) if found is None else Checked(found, stamp)
        read = self._reader.read(entry, checked.found)
        with self._engine.lock, self._lock:
            if self._entries.get(target) is entry and entry.adapter is None and entry.job is None:
                entry.found, entry.stamp, entry.there = checked.found, checked.stamp, True
                self._keep(entry, read, checked.found, begun)
            self.reap()
        return read.adapter

    # What the scheduler calls; the engine's lock is held

    def exchange(self) -> None:
        """Decide whose turn it is, and see that those are loaded."""
        with self._lock:
            pinned = self._pinned()
            for entry in self._wanted():
                self._begin(entry)
                if pinned and entry.found is not None:  # they may have come since it was checked
                    entry.error = self._places.lack_of_room(entry, entry.found, pinned)
            for entry in self._places.shared_out(self._wanted(), set(self._engine.in_use()), pinned):
                self._start(entry, "loading")

    def admit(self, target: Target | None) -> tuple[Adapter | None, int] | None:
        """The adapter that a request of `target` runs on and the version of its weights; None: not yet."""
        if target is None:
            return None, self._base_version
        with self._lock:
            entry = self._entries.get(target)
            if entry is None or entry.adapter is None:
                return None
            if entry.source is not None and not self._places.exchange.admits(entry):
                return None
            return entry.adapter, max(self._base_version, entry.version)

    def started(self, target: Target) -> None:
        """A request of `target` that was admitted runs."""
        with self._lock:
            entry = self._entries.get(target)
            if entry is not None:
                self._places.exchange.served(entry, self._clock())

    def version(self, target: Target | None) -> int:
        """Of the weights that `target` has now."""
        entry = self._entries.get(target) if target is not None else None
        return self._base_version if entry is None else max(self._base_version, entry.version)

    def failure(self, target: Target | None) -> Exception | None:
        """Why no request of `target` will ever start, if so."""
        entry = self._entries.get(target) if target is not None else None
        if target is not None and entry is None:
            return UserError(f"there is no adapter {str(target)!r} any more", expected="see which adapters there are")
        return None if entry is None else entry.error

    def forgive(self, targets: Iterable[Target]) -> None:
        """Everybody was told of the error: whoever comes next tries again."""
        with self._lock:
            for target in targets:
                entry = self._entries.get(target)
                if entry is not None and entry.error is not None:
                    self._places.drop(entry)
                    self._entries[target] = entry.again()
            strange = [t for t, e in self._entries.items() if not e.there and e.job is None]
            for target in set(strange[:-STRANGE]) - set(self._engine.wanted()):
                del self._entries[target]

    def reap(self) -> None:
        """Drop what was removed or replaced and has no requests left."""
        with self._lock:
            asked, in_use = self._engine.wanted(), set(self._engine.in_use())
            wanted = {*asked, *(name for target in asked for name in named_in(target))}
            for entry in [e for e in self._replaced if e.adapter not in in_use]:
                self._replaced.discard(entry)
                self._places.drop(entry)
            self._forget_merges()
            gone = [e for e in self._entries.values() if e.leaving and e.target not in wanted]
            for entry in [e for e in gone if e.adapter not in in_use]:
                del self._entries[entry.target]
                self._places.drop(entry)
            self.draining = bool(self._replaced) or any(e.leaving for e in self._entries.values())

    # How it works; the lock is held but in _add, _asked, _source_of, _member, _unknown and _done

    def _forget_merges(self) -> None:
        merges = [entry for target, entry in self._entries.items() if isinstance(target, Merged)]
        for entry in sorted(merges, key=lambda entry: entry.last_used or 0.0)[:-MERGES]:
            entry.leaving = True
            self._versions.pop(entry.target, None)

    def _count(self) -> int:
        self.updates += 1
        return self.updates

    def _add(self, entry: Entry) -> None:
        begun = self._clock()
        checked = self._reader.check(entry)
        entry.found, entry.stamp = checked.found, checked.stamp
        read = self._reader.read(entry, checked.found)
        with self._engine.lock, self._lock:
            if (error := self._places.lack_of_room(entry, checked.found, self._pinned())) is not None:
                raise error
            known = self._versions.get(entry.target)
            if known is None or known[0] != read.adapter.key:
                known = self._versions[entry.target] = read.adapter.key, self._count()
            entry.version = known[1]
            self._replace(entry)
            self._keep(entry, read, checked.found, begun)
            self.reap()
        self._engine.wake()

    @contextmanager
    def _asked(self, target: Target, where: str) -> Iterator[Entry]:
        """The entry of a request's target, with the lock held; a new one where its source was written again."""
        for name in target.adapters if isinstance(target, Merged) else ():
            if not self.may_ask(name):
                raise self._unknown(name, f"{where}: adapters")
        before = self._entries.get(target)
        source, stamp = None if before is None else before.source, None
        if source is not None:
            stamp = source.stamp()
        elif before is None and target not in self._removed:
            source = self._source_of(target)
        with self._lock:
            entry = self._entries.get(target)
            if entry is None and before is None and source is not None:
                entry = self._entries[target] = Entry(target, source)
                self.draining = self.draining or isinstance(target, Merged)
            if entry is not None and entry.leaving and isinstance(target, Merged):  # who left has come back
                entry.leaving = False
                entry = self._replace(entry.again())
            if entry is not None and not entry.leaving:
                known = entry.found is not None or entry.error is not None
                if entry is before and known and entry.job is None and entry.stamp != stamp:
                    entry = self._replace(entry.again())
                entry.requests, entry.last_used = entry.requests + 1, self._clock()
                yield entry
                return
        raise self._unknown(target, where)

    def _source_of(self, target: Target) -> Source | None:
        """The one place where what a request asks for becomes something that can be read; None: nothing has that name.

        No lock is held, here or while the source is read.
        """
        if isinstance(target, Merged):
            return Members(target, self._member, self._reader)
        return self._sources.find(target)

    def _member(self, name: str) -> Entry | None:
        """An adapter that another is made of, known here or where it lies."""
        with self._lock:
            entry = self._entries.get(name)
        if entry is None and name not in self._removed and (source := self._sources.find(name)) is not None:
            return Entry(name, source)
        return entry

    def _unknown(self, target: Target, where: str) -> UserError:
        known = [*self]
        some = ", ".join(known[:20]) + (", …" if len(known) > 20 else "") if known else "none is loaded"
        return UserError(f"no adapter {str(target)!r}", where, f"adapters: {some}")

    def _wanted(self) -> Sequence[Entry]:
        """Those from files that requests wait for, the first come first."""
        asked = [self._entries[target] for target in self._engine.wanted() if target in self._entries]
        return [entry for entry in asked if entry.source is not None and entry.error is None]

    def _pinned(self) -> Collection[Entry]:
        return [entry for entry in self._entries.values() if entry.pinned]

    def _replace(self, entry: Entry) -> Entry:
        before = self._entries.get(entry.target)
        self._entries[entry.target] = entry
        self._removed -= {entry.target}
        if before is not None:
            before.job, self.draining = None, True
            entry.requests, entry.last_used = before.requests, before.last_used
            self._replaced.add(before)
        for target, other in [*self._entries.items()]:
            if isinstance(target, Merged) and entry.target in target.adapters:
                self._replace(other.again())
        return entry

    def _begin(self, entry: Entry) -> None:
        if entry.source is not None and entry.found is None and entry.job is None and entry.error is None:
            self._start(entry, "checking")

    def _start(self, entry: Entry, kind: Literal["checking", "loading"], begun: float | None = None) -> None:
        entry.job = Job(kind, self._clock() if begun is None else begun)
        self._reader.begin(entry, entry.job, self._done)

    def _done(self, entry: Entry, job: Job, result: Checked | Read | Failed) -> None:
        """What came of a job, in its thread; of no meaning where the entry has another by now."""
        with self._lock:
            if entry.job is not job:
                return
            entry.job = None
            if isinstance(result, Failed):
                entry.error, entry.stamp = result.error, result.stamp
            elif isinstance(result, Checked):
                entry.found, entry.stamp, entry.there = result.found, result.stamp, True
                entry.error = self._places.lack_of_room(entry, result.found, self._pinned())
                if entry.error is None and self._places.offered(entry, result.found):  # no need to wait for a step
                    self._start(entry, "loading", job.begun)
            elif entry in self._places.exchange.active:
                self._arrived(entry, result, job.begun)
        self._engine.wake()

    def _keep(self, entry: Entry, read: Read, found: Found, begun: float) -> None:
        """Let an adapter that was read take part where that takes nobody's place."""
        busy = {*self._places.used(set(self._engine.in_use())), *self._pinned(), *self._wanted()}
        if self._places.offered(entry, found, busy):
            self._arrived(entry, read, begun)

    def _arrived(self, entry: Entry, read: Read, begun: float) -> None:
        adapter = read.adapter
        known = self._versions.get(entry.target)
        if known is None or known[0] != adapter.key:
            first = max(map(self.version, named_in(entry.target)))
            known = self._versions[entry.target] = adapter.key, first if known is None else self._count()
        entry.key, entry.version = adapter.key, known[1]
        self._places.arrived(entry, read, self._clock() - begun)
