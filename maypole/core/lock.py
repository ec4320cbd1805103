"""One process at a time in a directory. Knows nothing about what is made there."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from maypole.core.errors import ArtifactError

NAME = ".lock"


class DirectoryLock:
    """An exclusive lock in `directory`, held until `release` or until this process ends, however it ends."""

    def __init__(self, directory: Path, file: IO[str]) -> None:
        self.directory, self._file = directory, file

    @classmethod
    def take(cls, directory: Path, *, waiting: Callable[[str], None] | None = None) -> "DirectoryLock":
        """Lock `directory`, made where it is missing.

        ArtifactError names the process that holds it already, or says why nothing can be written there. With `waiting`
        that process is waited for, after `waiting` was told its id.
        """
        while True:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                file = open(directory / NAME, "a+")  # noqa: SIM115 (held as long as the lock)
            except FileNotFoundError:
                continue  # renamed away by the process that had it, between the two lines above
            except PermissionError as error:
                expected = "a directory you may write to"
                raise ArtifactError("cannot be written", str(directory), expected) from error
            except (NotADirectoryError, FileExistsError) as error:
                what = "is a file" if directory.is_file() else "lies below a file"
                raise ArtifactError(what, str(directory), "a path below a directory") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip()
                if waiting is None:
                    file.close()
                    raise ArtifactError(
                        "another process is working on it" + (f" (pid {holder})" if holder else ""),
                        str(directory),
                        "wait for it to end, or name another --out",
                    ) from error
                waiting(holder)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                file.close()
                raise
            if _same_file(file, directory / NAME):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return cls(directory, file)
            file.close()  # the directory became a finished result while we waited: look again

    def moved(self, directory: Path) -> None:
        """The locked directory was renamed; `release` removes the lock file from its new place."""
        self.directory = directory

    def release(self, *, remove: bool = False) -> None:
        """Let others in; `remove` also takes the lock file away, as a finished result needs none."""
        if remove:
            (self.directory / NAME).unlink(missing_ok=True)
        self._file.close()


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
