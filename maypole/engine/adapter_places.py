"""Who has a place on the device, who leaves it, and what the host's memory behind it still holds.

Knows nothing about names, requests and threads: whoever calls holds the store's lock.
"""

from collections.abc import Callable, Collection, Mapping

from maypole.core.errors import UserError
from maypole.engine.adapter_entry import Entry
from maypole.engine.adapter_reading import Read
from maypole.engine.adapter_sources import Found
from maypole.engine.adapters import Adapter
from maypole.engine.exchange import Exchange
from maypole.engine.settings import AdapterConfig, parse_bytes


class Places:
    """The places that `config` allows; `forget` is told of each adapter that leaves the device."""

    def __init__(self, config: AdapterConfig, forget: Callable[[Adapter], None], clock: Callable[[], float]) -> None:
        self._config, self._forget, self._clock = config, forget, clock
        self._budget = parse_bytes("max_bytes", config.max_bytes)
        self._host_budget = parse_bytes("host_bytes", config.host_bytes)
        self._loads, self._load_seconds, self._evictions = 0, 0.0, 0
        self.clear()

    def clear(self) -> None:
        """Nobody has a place."""
        self.exchange: Exchange[Entry] = Exchange(self._budget, self._config.max_active, self._config.cycle_time)
        self._hosted: set[Entry] = set()

    def stats(self) -> Mapping[str, float]:
        """Loads, the seconds they took, and evictions, so far."""
        return {"loads": self._loads, "load_seconds": self._load_seconds, "evictions": self._evictions}

    def used(self, in_use: Collection[Adapter]) -> Collection[Entry]:
        """Who has a place, and requests that run on it."""
        return [entry for entry in self.exchange.active if entry.adapter in in_use]

    def shared_out(
        self, wanted: Collection[Entry], in_use: Collection[Adapter], pinned: Collection[Entry]
    ) -> Collection[Entry]:
        """Decide whose turn it is; those that have a place now and are to be loaded."""
        costs = {entry: entry.found.cost for entry in wanted if entry.found is not None}
        moves = self.exchange.update(self._clock(), wanted, self.used(in_use), costs, pinned)
        for entry in moves.out:
            self._evict(entry)
        return moves.into

    def offered(self, entry: Entry, found: Found, busy: Collection[Entry] | None = None) -> bool:
        """Whether there was a place for `entry`: a free one, or of one who is not `busy`, as all are by default."""
        taken = self.exchange.active if busy is None else busy
        moves = self.exchange.offer(self._clock(), entry, found.cost, taken)
        for other in moves.out:
            self._evict(other)
        return bool(moves.into)

    def lack_of_room(self, entry: Entry, found: Found, pinned: Collection[Entry]) -> UserError | None:
        """Why there will never be a place for `entry`, if so."""
        others = [other for other in pinned if other.target != entry.target]
        room = self._budget - sum(other.found.cost for other in others if other.found is not None)
        if found.cost > room:
            what = f"the adapter needs {found.cost:,} bytes"
            return UserError(what, entry.where, f"at most {room:,} beside those that are pinned (max_bytes)")
        if len(others) >= self._config.max_active:
            what = f"all {len(others)} places are taken by adapters that are pinned"
            return UserError(what, entry.where, "a higher max_active")
        return None

    def arrived(self, entry: Entry, read: Read, seconds: float) -> None:
        """What was read is in its place."""
        entry.adapter = read.adapter
        self._loads, self._load_seconds = self._loads + 1, self._load_seconds + seconds
        if read.host is not read.adapter:
            entry.host = read.host
            self._hosted.add(entry)
            self._trim_host()

    def drop(self, entry: Entry) -> None:
        """From everywhere."""
        self.exchange.leave(entry)
        self._hosted.discard(entry)
        entry.host = None
        self._leave_device(entry)

    def _evict(self, entry: Entry) -> None:
        """From the device; the host may have it still."""
        self._evictions += 1
        self._leave_device(entry)

    def _leave_device(self, entry: Entry) -> None:
        adapter, entry.adapter, entry.job = entry.adapter, None, None
        if adapter is not None:
            self._forget(adapter)

    def _trim_host(self) -> None:
        """Forget what the host holds beyond its bytes, the longest unused first."""
        room = self._host_budget
        for entry in sorted(self._hosted, key=lambda entry: -(entry.last_used or 0.0)):
            room -= entry.host.bytes if entry.host is not None else 0
            if room < 0:
                self._hosted.discard(entry)
                entry.host = None
