"""How a server ends: what is new is refused, what is under way goes on, and what is not done in time is given up.

Knows nothing about signals or what is under way.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ending:
    """`draining` once the end has begun; `expire` is called when the time for it is over."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self.draining = False
        self.expired = False
        self._give_up = give_up
        self._waiting: set[asyncio.Future[None]] = set()

    @contextmanager
    def expiry(self) -> Iterator["asyncio.Future[None]"]:
        """Done when time is over."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self.expired:
            future.set_result(None)
        try:
            yield future
        finally:
            self._waiting.discard(future)
            future.cancel()

    def expire(self) -> None:
        """Give up what is still under way."""
        self.draining = self.expired = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._give_up()
