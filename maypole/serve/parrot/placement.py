"""Which task runs where and when: the scheduler of several engines (arXiv 2405.19888, section 5.4, algorithm 1).

An engine that runs a latency task holds few tokens, so that each comes soon; any other as many as it can. A task goes
where it takes least from the others, then to who has its beginning already, then to who has least to do. What fits
nowhere waits, and nothing of its kind overtakes it. A group's members stay together where they begin alike and are
spread where they do not: what a large batch saves is little beside the prompts that it has to read first. Knows no
clock, no engine and no text.
"""

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from maypole.core.errors import ConfigError
from maypole.serve.parrot.objectives import LATENCY, Objective
from maypole.serve.parrot.prefixes import Boundary

REMEMBERED = 4096
"""Beginnings that an engine is believed to have, the latest used ones."""
WORTHWHILE = 0.25
"""Share of a task's tokens from which on a beginning decides where the task goes."""
PATIENCE = 256
"""Tasks that may start before one that fits nowhere; then an engine is left to run empty for it."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Tokens in the cache of an engine while it runs a latency task, and while it runs none."""

    latency: int = 8192
    throughput: int = 65536

    def __post_init__(self) -> None:
        if self.latency < 1:
            raise ConfigError("latency_tokens", self.latency, "a whole number above 0")
        if self.throughput < self.latency:
            raise ConfigError("throughput_tokens", self.throughput, f"at least latency_tokens, {self.latency}")


@dataclass(slots=True, eq=False)
class Job:
    """What the scheduler knows of a task.

    `tokens` are those of prompt and completion at most, `boundaries` the beginnings it could share, `order` its place:
    the application that came first, in it what is nearest to its end, then who came first. `barred` engines are not
    asked.
    """

    id: Hashable
    model: str | None
    tokens: int
    objective: Objective
    order: tuple[int, ...]
    boundaries: Sequence[Boundary] = ()
    barred: frozenset[str] = frozenset()
    ticket: int = 0
    blocked: int | None = None
    host: "HostLoad | None" = None

    @property
    def place(self) -> tuple[int, ...]:
        """Before whom of those who are in no hurry it comes: groups first."""
        return (-self.objective, *self.order)


class HostLoad:
    """What one engine runs, in tokens: what several tasks begin with counts once where the engine shares it."""

    def __init__(
        self, name: str, capacity: Capacity, *, shares: bool = True, serves: Callable[[str | None], bool] | None = None
    ) -> None:
        self.name, self.capacity, self.shares = name, capacity, shares
        self.serves = serves or (lambda model: True)
        self.load = 0
        self.latency = 0
        self.jobs: dict[Job, None] = {}
        self._users: Counter[bytes] = Counter()
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def cap(self, objective: Objective | None = None) -> int:
        """Tokens it may hold, once a task of this objective runs too."""
        soon = self.latency or objective == LATENCY
        return self.capacity.latency if soon else self.capacity.throughput

    @property
    def works(self) -> bool:
        """Whether it runs anything that is in no hurry."""
        return len(self.jobs) > self.latency

    def added(self, job: Job) -> int:
        """Tokens that `job` would add."""
        return job.tokens - self._shared(job, self._users)

    def cached(self, job: Job) -> int:
        """Tokens of its prompt that need not be computed again."""
        return max(self._shared(job, self._known), self._shared(job, self._users))

    def fits(self, job: Job) -> bool:
        """An empty engine takes whatever it can hold at all."""
        if not self.jobs:
            return job.tokens <= self.capacity.throughput
        return self.load + self.added(job) <= self.cap(job.objective)

    def take(self, job: Job) -> None:
        self.load += self.added(job)
        self.latency += job.objective == LATENCY
        self.jobs[job] = None
        job.host = self
        for boundary in job.boundaries if self.shares else ():
            self._users[boundary.key] += 1
            self._known[boundary.key] = None
            self._known.move_to_end(boundary.key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def let_go(self, job: Job) -> None:
        del self.jobs[job]
        job.host = None
        self.latency -= job.objective == LATENCY
        for boundary in job.boundaries if self.shares else ():
            self._users[boundary.key] -= 1
            if not self._users[boundary.key]:
                del self._users[boundary.key]
        self.load -= self.added(job)

    def _shared(self, job: Job, known: Container[bytes]) -> int:
        if not self.shares:
            return 0
        return next((b.tokens for b in reversed(job.boundaries) if b.key in known), 0)


@dataclass(slots=True)
class _Queue:
    """Jobs of one model, those in a hurry apart; entries whose ticket is old are passed over."""

    hurried: "list[_Entry]" = field(default_factory=list)
    others: "list[_Entry]" = field(default_factory=list)


_Entry = tuple[tuple[int, ...], int, Job]


class Scheduler:
    """The jobs that wait, and what each engine runs."""

    def __init__(self, hosts: Iterable[HostLoad] = ()) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.waiting = 0
        self.placed = 0
        self._queues: dict[str | None, _Queue] = {}
        self._tickets = itertools.count(1)

    def possible(self, job: Job) -> bool:
        """Whether any engine could ever run it."""
        return any(job.tokens <= host.capacity.throughput for host in self._asked(job))

    def most(self, job: Job) -> int:
        """Tokens that an engine could run of its model at most; 0 where none has it."""
        return max((host.capacity.throughput for host in self._asked(job)), default=0)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self.waiting += 1
        self._push(job)

    def change(self, job: Job, objective: Objective) -> None:
        """`job`, waiting or running, is now run for `objective`."""
        if job.host is not None:
            job.host.latency += (objective == LATENCY) - (job.objective == LATENCY)
        job.objective = objective
        if job.ticket:
            self._push(job)

    def withdraw(self, job: Job) -> None:
        """`job` is over: it stops waiting, or what it took is free again."""
        if job.host is not None:
            job.host.let_go(job)
        elif job.ticket:
            job.ticket = 0
            self.waiting -= 1

    def place(self) -> list[tuple[Job, HostLoad]]:
        """Jobs that start now, and where."""
        placed: list[tuple[Job, HostLoad]] = []
        for queue in self._queues.values():
            owed = self._owed(queue)
            kept = self._start(queue.hurried, owed, placed)
            if owed is not None:
                kept = None
            blocked = self._start(queue.others, kept, placed)
            head = _first(queue.others)
            if blocked is not None and head is not None and head.blocked is None:
                head.blocked = self.placed
        return placed

    def _start(
        self, heap: "list[_Entry]", kept: HostLoad | None, placed: list[tuple[Job, HostLoad]]
    ) -> HostLoad | None:
        """Start the first of a queue on any engine but `kept`; where one fits nowhere, the engine nearest to it."""
        while (job := _first(heap)) is not None:
            hosts = self._asked(job)
            fitting = [host for host in hosts if host is not kept and host.fits(job)]
            if not fitting:
                return min(hosts, key=lambda host: host.load - host.cap(job.objective), default=None)
            best = min(fitting, key=partial(_cost, job))
            heapq.heappop(heap)
            job.ticket = 0
            self.waiting -= 1
            self.placed += 1
            best.take(job)
            placed.append((job, best))
        return None

    def _owed(self, queue: _Queue) -> HostLoad | None:
        """The engine that runs empty for one that was passed over too often."""
        job = _first(queue.others)
        if job is None or job.blocked is None or self.placed - job.blocked < PATIENCE:
            return None
        return min(self._asked(job), key=lambda host: host.load, default=None)

    def _asked(self, job: Job) -> list[HostLoad]:
        return [h for h in self.hosts.values() if h.name not in job.barred and h.serves(job.model)]

    def _push(self, job: Job) -> None:
        queue = self._queues.setdefault(job.model, _Queue())
        job.ticket = next(self._tickets)
        heapq.heappush(queue.hurried if job.objective == LATENCY else queue.others, (job.place, job.ticket, job))


def _first(heap: "list[_Entry]") -> Job | None:
    """The job at the top; what was withdrawn or queued anew is dropped."""
    while heap:
        _, ticket, job = heap[0]
        if job.ticket == ticket:
            return job
        heapq.heappop(heap)
    return None


def _cost(job: Job, host: HostLoad) -> tuple[int, int, int, int]:
    """What it costs others first: tokens of room that throughput work loses, then room that nobody uses yet; then what
    has to be computed, then company."""
    lost = host.cap() - host.cap(job.objective)
    cached = host.cached(job)
    worth = cached if cached >= WORTHWHILE * job.tokens else 0
    return (lost if host.works else 0), lost, -worth, host.load
