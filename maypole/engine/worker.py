"""A thread that steps a queue while there is work in it, so that callers of async methods need not.

Knows nothing about what a step does.
"""

import threading
import time
from collections.abc import Callable

REST = 0.05
"""Seconds of a rest that nobody ends."""


class Turnstile:
    """A lock that goes to who waits for it rather than back to who just let go; its owner may take it again.

    A loop that takes and leaves a plain lock can keep everybody else waiting until it ends.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._next = threading.Lock()

    def __enter__(self) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            self._lock.acquire()
            return
        with self._next:
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Bell:
    """Wakes who rests because there was nothing to do; a ring that comes before the rest is not missed."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self.count = 0

    def ring(self) -> None:
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def rest(self, heard: int) -> None:
        """Return when it has rung since its `count` was `heard`, or soon, for time limits pass in silence."""
        with self._rung:
            self._rung.wait_for(lambda: self.count != heard, REST)


class Worker:
    """`step` runs under `lock`, in a daemon thread that starts with the first submission and ends when not `busy`.

    After a step that did nothing it rests, outside the lock, until `bell` rings. `on_step`, where it is set, is told
    how many seconds each other step took.
    """

    def __init__(self, lock: Turnstile, bell: Bell, busy: Callable[[], bool], step: Callable[[], bool]) -> None:
        self._lock, self._bell, self._busy, self._step = lock, bell, busy, step
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
        self._bell.ring()

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
            heard = self._bell.count
            with self._lock:
                with self._handoff:
                    if not self._busy():
                        self._thread = None
                        return
                begun = time.monotonic()
                did = self._step()
                self._stepped = time.monotonic()
                if did and self.on_step is not None:
                    self.on_step(self._stepped - begun)
            if not did:
                self._bell.rest(heard)
