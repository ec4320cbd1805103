"""Errors written for the person who runs the command: what was wrong, where, and what would be right.

A `UserError` ends a command with exit code 2 and no traceback; anything else is our own fault (exit code 3).
"""

import pickle
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class MaypoleError(Exception):
    """Everything maypole raises on purpose; it comes whole out of another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


class UserError(MaypoleError):
    """The input is wrong: `what` happened, `where`, and what was `expected`."""

    def __init__(self, what: str, where: str = "", expected: str = "") -> None:
        self.what, self.where, self.expected = what, where, expected
        super().__init__(self.message)

    @property
    def message(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  hint: {self.expected}" if self.expected else head


class DataError(UserError):
    """A file, a row of it (counted from 1) or a field of that row cannot be used."""

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        field: str | None = None,
        expected: str = "",
    ) -> None:
        self.file, self.row, self.field = file, row, field
        where = str(file) if file is not None else ""
        if row is not None:
            where += f" row {row}" if where else f"row {row}"
        if field is not None:
            where += f', field "{field}"' if where else f'field "{field}"'
        super().__init__(what, where, expected)


@contextmanager
def rows_in(*files: str | Path) -> Iterator[None]:
    """Give a DataError that knows its row alone the name of the files whose rows were counted."""
    try:
        yield
    except DataError as error:
        if error.file is not None or error.row is None:
            raise
        where = ", ".join(map(str, files))
        raise DataError(error.what, file=where, row=error.row, field=error.field, expected=error.expected) from error


class ConfigError(UserError):
    """A setting has a value that cannot work; `accepted` says which would."""

    def __init__(self, field: str, value: object, accepted: str | Iterable[object]) -> None:
        self.field, self.value = field, value
        self.accepted = accepted if isinstance(accepted, str) else ", ".join(str(a) for a in accepted)
        super().__init__(f"{value!r} does not work", f"--{field.replace('_', '-')}", f"accepted: {self.accepted}")


class MissingExtra(UserError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, purpose: str = "") -> None:
        self.extra = extra
        what = f"{purpose} needs an optional part of maypole" if purpose else "an optional part of maypole is missing"
        super().__init__(what, expected=f"pip install 'maypole[{extra}]'")


class UnsupportedModel(UserError):
    """A model family lacks something that a method needs."""

    def __init__(self, family: str, lacks: str, expected: str = "") -> None:
        self.family, self.lacks = family, lacks
        super().__init__(f"model family {family!r} lacks {lacks}", expected=expected)


class UnsupportedCapability(UserError):
    """A backend cannot do what was asked; raised before anything runs or is sent."""


class ArtifactError(UserError):
    """A result directory is in the way, in use, or was made by another command."""


class JudgeError(UserError):
    """A judge raised, timed out, or answered with something that is not a list of finite numbers."""


class RemoteError(MaypoleError):
    """A remote endpoint failed; `retryable` says whether the same request may succeed later."""

    def __init__(self, what: str, *, retryable: bool) -> None:
        self.retryable = retryable
        super().__init__(what)


def portable(error: BaseException, where: str) -> BaseException:
    """`error` as it can be sent to another process, with the traceback, which says `where` it was, as a note."""
    error.add_note(f"{where}:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _restored(kind: type[MaypoleError], args: tuple[Any, ...], state: dict[str, Any]) -> MaypoleError:
    """An unpickled error; its class is not called again, for each wants other arguments than the message."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
