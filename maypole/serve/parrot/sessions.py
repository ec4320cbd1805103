"""A session: one application's variables and tasks, who waits for them, and who watches. Runs nothing.

Whoever watches is told the whole once and then what changed, each time under a higher number (`seq`); who reads slowly
is told the latest state of what changed meanwhile, so that nothing piles up.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from maypole.core.errors import ConfigError, UserError
from maypole.serve.parrot.graph import Graph, Task, Variable
from maypole.serve.parrot.hosts import Part
from maypole.serve.parrot.pictures import edge, node, totals
from maypole.serve.parrot.placement import Job


class TooMany(UserError):
    """There is no room for more; there may be later."""


class Unknown(UserError):
    """There is no such session or variable, or not for who asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Sessions at once; tasks and characters (templates, inputs and outputs) of one, and of all together; and the
    seconds after its last use at which a session ends."""

    sessions: int = 2048
    tasks: int = 4096
    all_tasks: int = 2**16
    characters: int = 2**24
    all_characters: int = 2**28
    ttl: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("sessions", "tasks", "all_tasks", "characters", "all_characters", "ttl"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, getattr(self, name), "a number above 0")


class Session:
    """`owner` is whose it is (the place of an API key), `number` how many there were before."""

    def __init__(self, number: int, *, seed: int, owner: int | None, ttl: float) -> None:
        self.id, self.auth = secrets.token_hex(8), secrets.token_urlsafe(24)
        self.number, self.seed, self.owner, self.ttl = number, seed, owner, ttl
        self.graph = Graph(self.id, self._changed)
        self.used = 0.0
        self.characters = 0
        self.closed = False
        self.pending: dict[Task, None] = {}
        self.flushing: asyncio.TimerHandle | None = None
        self.expiring: asyncio.TimerHandle | None = None
        self.jobs: dict[Task, Job] = {}
        self.working: dict[Task, asyncio.Task[None]] = {}
        self.said: dict[Task, list[Part]] = {}
        self.partial: dict[Variable, list[str]] = {}
        self._waiters: dict[tuple[Variable, bool], list[asyncio.Future[None]]] = {}
        self._seq = 0
        self._watchers: list[_Watcher] = []

    def known(self, id: str) -> Variable:
        """The variable `id`; Unknown where there is none."""
        variable = self.graph.variables.get(id)
        if variable is None:
            raise Unknown("no such variable", "variable", "an id of this session")
        return variable

    async def changed(self, variable: Variable, timeout: float | None, *, ended: bool) -> None:
        """Return when more of `variable` is known, or with `ended` all of it; TimeoutError after `timeout` seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault((variable, ended), [])
        waiters.append(future)
        try:
            await asyncio.wait_for(future, timeout)
        finally:
            if future in waiters:
                waiters.remove(future)
            if not waiters and self._waiters.get((variable, ended)) is waiters:
                del self._waiters[variable, ended]

    def followed(self, variable: Variable) -> bool:
        """Whether somebody waits for more of `variable` or watches; may be asked from any thread."""
        return bool(self._watchers) or (variable, False) in self._waiters

    def tell(self, variable: Variable) -> None:
        """Wake who waits for more of `variable`, and if that is all, or will be, who waits for the whole."""
        for ended in (False, True) if variable.done or self.closed else (False,):
            for future in self._waiters.pop((variable, ended), ()):
                if not future.done():
                    future.set_result(None)

    def snapshot(self) -> dict[str, Any]:
        """All nodes (tasks), edges (variables) and totals."""
        return {
            "type": "snapshot", "seq": self._seq, "session_id": self.id,
            "nodes": [node(task) for task in self.graph.tasks.values()],
            "edges": [edge(variable) for variable in self.graph.variables.values()],
            "totals": totals(self.graph.tasks.values()),
        }  # fmt: skip

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """The snapshot, then changes, until the session ends."""
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            yield self.snapshot()
            while not self.closed:
                await watcher.woken.wait()
                watcher.woken.clear()
                dirty, watcher.dirty = watcher.dirty, {}
                if dirty:
                    yield {
                        "type": "changes", "seq": self._seq,
                        "nodes": [node(one) for one in dirty if isinstance(one, Task)],
                        "edges": [edge(one) for one in dirty if isinstance(one, Variable)],
                        "totals": totals(self.graph.tasks.values()),
                    }  # fmt: skip
            yield {"type": "closed", "seq": self._seq}
        finally:
            self._watchers.remove(watcher)

    def end(self) -> None:
        """Nothing of it is kept, and who watches or waits is told."""
        self.closed = True
        for timer in (self.flushing, self.expiring):
            if timer is not None:
                timer.cancel()
        for variable, _ in list(self._waiters):
            self.tell(variable)
        for watcher in self._watchers:
            watcher.woken.set()

    def touched(self, task: Task) -> None:
        """Something about `task` is new."""
        self._changed(task)

    def _changed(self, entity: Variable | Task) -> None:
        self._seq += 1
        for watcher in self._watchers:
            watcher.dirty[entity] = None
            watcher.woken.set()


class _Watcher:
    """What somebody who watches has not been told yet."""

    def __init__(self) -> None:
        self.dirty: dict[Variable | Task, None] = {}
        self.woken = asyncio.Event()
