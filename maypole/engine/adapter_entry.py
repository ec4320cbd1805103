"""What is known of one adapter: where it comes from, how far it has come, and what requests made of it.

Knows nothing about files and threads.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from maypole.engine.adapter_sources import Found, Source
from maypole.engine.adapters import Adapter
from maypole.engine.request import Target

State = Literal["disk", "checking", "loading", "host", "ready", "draining", "error"]


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One adapter as it stands.

    `state` says how near it is: "ready" on the device, "host" in the memory behind it, "disk" to be read. `sha256` is
    that of its files as they were read, `last_used` in seconds ago, `requests` how many there were.
    """

    id: str
    state: State
    rank: int | None
    bytes: int | None
    base: str | None
    sha256: str | None
    last_used: float | None
    requests: int
    pinned: bool


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work that goes on beside; what it brings counts for the entry that still has it."""

    kind: Literal["checking", "loading"]
    begun: float


@dataclass(slots=True, eq=False)
class Entry:
    """What a target means until its source is written again or it is replaced. Without `source` it is in memory alone.

    `adapter` is on the device, `host` in the memory behind it. It is `there` once its files were found to be right, or
    when it was added.
    """

    target: Target
    source: Source | None
    there: bool = False
    pinned: bool = False
    version: int = 0
    found: Found | None = None
    stamp: Hashable = None
    key: Hashable = None
    adapter: Adapter | None = None
    host: Adapter | None = None
    job: Job | None = None
    error: Exception | None = None
    leaving: bool = False
    last_used: float | None = None
    requests: int = 0

    @property
    def where(self) -> str:
        return f"adapter {str(self.target)!r}"

    @property
    def state(self) -> State:
        if self.leaving:
            return "draining"
        if self.error is not None:
            return "error"
        if self.adapter is not None:
            return "ready"
        return self.job.kind if self.job is not None else "host" if self.host is not None else "disk"

    def again(self) -> "Entry":
        """The same target, to be read anew."""
        return Entry(
            self.target, self.source, self.there, self.pinned, self.version,
            leaving=self.leaving, last_used=self.last_used, requests=self.requests,
        )  # fmt: skip

    def status(self, now: float) -> AdapterStatus:
        """For people and metrics."""
        known: Any = self.adapter or self.host or self.found
        config = getattr(known, "config", None)
        return AdapterStatus(
            id=str(self.target),
            state=self.state,
            rank=getattr(known, "rank", None),
            bytes=getattr(known, "bytes", None),
            base=getattr(config, "base_model_name_or_path", None),
            sha256=self.key if isinstance(self.key, str) else None,
            last_used=None if self.last_used is None else now - self.last_used,
            requests=self.requests,
            pinned=self.pinned,
        )
