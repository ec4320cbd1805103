"""A thread that steps a queue while there is work in it, so that callers of async methods need not.

Knows nothing about what a step does.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

Item = TypeVar("Item")


class Worker:
    """`step` runs under `lock`, in a daemon thread that starts with the first submission and ends when not `busy`.

    `on_step`, where it is set, is told how many seconds each step took.
    """

    def __init__(self, lock: threading.RLock, busy: Callable[[], bool], step: Callable[[], None]) -> None:
        self._lock, self._busy, self._step = lock, busy, step
        self._handoff = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stepped = 0.0
        self.on_step: Callable[[float], None] | None = None

    def submit(self, put: Callable[[], None]) -> None:
        """`put` work into the queue and see that somebody steps it; never waits for a step."""
        with self._handoff:
            put()
            if self._thread is None:
                self._stepped = time.monotonic()
                self._thread = threading.Thread(target=self._work, name="maypole-engine", daemon=True)
                self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread died with its work: nobody will ever step the queue again."""
        thread = self._thread
        return thread is None or thread.is_alive()

    @property
    def silent(self) -> float:
        """Seconds since the last step where there is something to do, else 0."""
        return 0.0 if self._thread is None else time.monotonic() - self._stepped

    def _work(self) -> None:
        while True:
            with self._lock:
                with self._handoff:
                    if not self._busy():
                        self._thread = None
                        return
                begun = time.monotonic()
                self._step()
                self._stepped = time.monotonic()
                if self.on_step is not None:
                    self.on_step(self._stepped - begun)


class Mailbox(Generic[Item]):
    """What other threads `put` for a coroutine of `loop`, which is woken once for all that came in the meantime."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Item] = deque()
        self._woken = asyncio.Event()
        self._waking = False

    def put(self, item: Item) -> None:
        self._items.append(item)
        if not self._waking:
            self._waking = True
            call_in(self._loop, self._woken.set)

    async def arrived(self) -> list[Item]:
        """All that came since the last call, in order; waits for the first."""
        while not self._items:
            await self._woken.wait()
            self._woken.clear()
            self._waking = False
        return [self._items.popleft() for _ in range(len(self._items))]


class _Calls:
    """Calls from other threads into one loop, which is woken once for all that came in the meantime: waking is dear."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._waking = False

    def put(self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._calls.append((function, args))
        if not self._waking and not loop.is_closed():
            self._waking = True
            loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._waking = False
        for _ in range(len(self._calls)):
            function, args = self._calls.popleft()
            function(*args)


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Calls] = WeakKeyDictionary()


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    """Call `function` in the thread of `loop`; nothing where that loop is gone."""
    calls = _of_loops.get(loop)
    if calls is None:
        calls = _of_loops[loop] = _Calls()
    calls.put(loop, function, args)
