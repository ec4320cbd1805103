"""From a thread into an event loop: waking a loop is dear, so what comes meanwhile comes along.

Knows nothing about what is sent.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

Item = TypeVar("Item")


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
    """Calls from other threads into one loop, which is woken once for all that came in the meantime."""

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
