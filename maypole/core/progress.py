"""How far a run is: one live bar on a terminal, a plain line now and then elsewhere, nothing when asked for quiet.

Knows nothing about what the steps are.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 10.0
"""Seconds between two lines where no terminal can show a live bar."""

_quiet = False
_shown: "list[Step]" = []


class Step(Protocol):
    """Reports `n` more units done, with numbers worth showing beside them (loss, kept …)."""

    def __call__(self, n: int = 1, **numbers: float | int | str) -> None: ...


def set_quiet(quiet: bool) -> None:
    """Show no progress at all (``--quiet``), or show it again."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """One line for the person who watches, on stderr; nothing under ``--quiet``."""
    if not _quiet:
        _write(_clean(text))


def is_quiet() -> bool:
    """Whether progress is hidden."""
    return _quiet


@contextmanager
def track(title: str, total: int | None, unit: str = "steps") -> Iterator[Step]:
    """Show progress of `title` on stderr: rate, time left and the step's numbers.

    `total` is the number of units, None when unknown. Titles and numbers are shown as they are, never as markup.
    """
    if _quiet:
        yield _nothing
        return
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with (_bar if live else _lines)(title, total, unit) as step:
        _shown.append(step)
        try:
            yield step
        finally:
            _shown.remove(step)


def tell(**numbers: float | int | str) -> None:
    """Show `numbers` beside the progress that is shown, if any is: how far the unit being worked on has come."""
    if _shown:
        _shown[-1](0, **numbers)


def _nothing(n: int = 1, **numbers: float | int | str) -> None:
    return None


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        """The title, or the numbers, as text without markup."""

        def __init__(self, field: str) -> None:
            super().__init__(Column(no_wrap=True, overflow="ellipsis"))
            self.field = field

        def render(self, task: Task) -> Text:
            return Text(task.description if self.field == "title" else task.fields.get("numbers", ""))

    counter = _Counter(total, unit)
    console = Console(stderr=True, no_color=True if os.environ.get("NO_COLOR") else None)
    columns = (Words("title"), BarColumn(bar_width=24), TaskProgressColumn(), Words("numbers"))
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(_clean(title), total=total, numbers="")

        def step(n: int = 1, **numbers: float | int | str) -> None:
            counter.add(n, numbers)
            progress.update(task, advance=n, numbers=counter.words())

        yield step


@contextmanager
def _lines(title: str, total: int | None, unit: str) -> Iterator[Step]:
    title = _clean(title)
    counter = _Counter(total, unit)
    _write(f"{title}: {total:,} {unit}" if total is not None else f"{title} ({unit})")
    last = time.monotonic()

    def step(n: int = 1, **numbers: float | int | str) -> None:
        nonlocal last
        counter.add(n, numbers)
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            _write(f"{title}: {counter.share()}{counter.words()}")

    try:
        yield step
    except BaseException:
        _write(f"{title}: stopped after {counter.done:,} {unit}")
        raise
    _write(f"{title}: {counter.done:,} {unit} in {duration(counter.seconds)}{counter.last_numbers()}")


def duration(seconds: float) -> str:
    """Seconds as people read them: ``0:07``, ``12:40``, ``3:05:00``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class _Counter:
    def __init__(self, total: int | None, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.numbers: dict[str, float | int | str] = {}
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def add(self, n: int, numbers: dict[str, float | int | str]) -> None:
        self.done += n
        self.numbers |= numbers

    def share(self) -> str:
        if not self.total:
            return f"{self.done:,} {self.unit}  "
        return f"{self.done:,} of {self.total:,} {self.unit} ({100 * self.done / self.total:.0f} %)  "

    def words(self) -> str:
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        parts = [f"{_short(rate)} {self.unit}/s", *self._shown()]
        if self.total and rate > 0:
            parts.append(f"eta {duration(max(self.total - self.done, 0) / rate)}")
        return "  ".join(parts)

    def last_numbers(self) -> str:
        return "".join(f"  {part}" for part in self._shown())

    def _shown(self) -> list[str]:
        return [_clean(f"{name} {_short(v) if isinstance(v, float) else v}") for name, v in self.numbers.items()]


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if abs(number) >= 1000 else f"{number:.3g}"


def _clean(text: str) -> str:
    """`text` without control characters, which could move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
