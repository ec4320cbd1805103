"""What to say when a command cannot go on, and where to keep what a developer needs. Knows nothing about commands."""

import errno
import logging
import re
import shlex
import sys
import traceback
from pathlib import Path

from cyclopts.exceptions import CycloptsError

from maypole.cli.show import clean
from maypole.core.errors import MaypoleError
from maypole.core.identity import cache_dir

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_MEMORY = ("OutOfMemoryError",)  # torch's own, told by name: this file loads no torch


def is_shortage(error: BaseException) -> bool:
    """Whether the machine ran out of disk or memory, which is nobody's bug."""
    return _no_space(error) or _no_memory(error)


def message(error: BaseException) -> str:
    """One paragraph for the user."""
    if isinstance(error, CycloptsError):
        return clean(str(error).strip())
    if isinstance(error, MaypoleError):
        return clean(str(error))
    if _no_space(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        why = error.strerror if isinstance(error, OSError) else error
        return clean(f"{where}no space left to write ({why})\n  hint: free some, then run the command again")
    if _no_memory(error):
        return "not enough memory\n  hint: smaller batches, a shorter context or a smaller model; --dry-run estimates"
    return clean(f"a fault of maypole's own: {type(error).__name__}: {error}")


def save(error: BaseException, argv: list[str], out: Path | None) -> str:
    """Keep the traceback beside the output, or in the cache when there is none; returns where."""
    text = f"$ {command(argv)}\n" + "".join(traceback.format_exception(error))
    try:
        path = out.with_name(out.name + ".traceback.txt") if out else cache_dir("faults") / "traceback.txt"
        path.write_text(text)
    except OSError:
        sys.stderr.write(text)
        return "above, for it could not be saved"
    return str(path)


def print_traceback(error: BaseException) -> None:
    """Show everything, for ``--debug``."""
    sys.stderr.write("".join(traceback.format_exception(error)))


def command(argv: list[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(["maypole", *argv])


def listen(*, debug: bool, quiet: bool) -> None:
    """Show what libraries warn of (``--debug``: all they say) on stderr, one handler however often it is called."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Warnings)]:
        root.removeHandler(handler)
    handler = _Warnings()
    handler.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)


class _Warnings(logging.StreamHandler):
    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def _no_space(error: BaseException) -> bool:
    """Of Python's files; of safetensors, which tells the number; of torch's archives, which only notice it."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    number = re.search(r"\(os error (\d+)\)", str(error))
    short = re.search(r"inline_container\.cc.*(unexpected pos|PytorchStreamWriter failed)", str(error))
    return int(number[1]) in _NO_SPACE if number else short is not None


def _no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ in _MEMORY
