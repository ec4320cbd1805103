"""Files that are either whole or absent: write beside, fsync, rename. Knows nothing about what the files mean."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash at any moment, sees the old file or the new one whole."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; its file takes the place of `path` when the block ends well, else it goes."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    try:
        yield Path(name)
        fsync_file(Path(name))
        make_readable(Path(name))
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    fsync_directory(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether `path` is a leftover of a write that was cut off."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def fsync_file(path: Path) -> None:
    """Have the content of `path` on the disk before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Have the names in the directory `path` on the disk (a directory is fsynced as a file is)."""
    fsync_file(path)


def fsync_tree(root: Path) -> None:
    """Fsync every file and directory below `root`, and `root` itself, leaves first."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink():
                fsync_file(path)
        fsync_directory(Path(directory))


def files_below(root: Path) -> Iterator[Path]:
    """Every file below `root` in an order that does not depend on the file system."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            yield Path(directory, name)


def make_readable(path: Path) -> None:
    """Give `path` the mode of a file that was simply opened; temporary files are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
