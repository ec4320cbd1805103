"""A thread that steps a queue while there is work in it, so that callers of async methods need not.

Knows nothing about what a step does.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """`step` runs under `lock`, in a daemon thread that starts with the first submission and ends when not `busy`."""

    def __init__(self, lock: threading.RLock, busy: Callable[[], bool], step: Callable[[], None]) -> None:
        self._lock, self._busy, self._step = lock, busy, step
        self._handoff = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, put: Callable[[], None]) -> None:
        """`put` work into the queue and see that somebody steps it; never waits for a step."""
        with self._handoff:
            put()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="maypole-engine", daemon=True)
                self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread died with its work: nobody will ever step the queue again."""
        thread = self._thread
        return thread is None or thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._lock:
                with self._handoff:
                    if not self._busy():
                        self._thread = None
                        return
                self._step()


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    """Call `function` in the thread of `loop`; nothing where that loop is gone."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)
