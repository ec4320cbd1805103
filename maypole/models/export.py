"""A model or adapter as a clean Hugging Face directory, whole or absent. Knows nothing about maypole's own records."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from maypole.core.atomic import fsync_directory, fsync_tree
from maypole.core.errors import ArtifactError
from maypole.core.lock import NAME as LOCK
from maypole.core.lock import DirectoryLock
from maypole.models.language_model import LanguageModel
from maypole.models.saving import save


def export_safetensors(
    lm: LanguageModel,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    readme: Path | None = None,
    force: bool = False,
) -> None:
    """Write `lm` to the directory `out` as `save_pretrained` would, with `readme` as its README.md.

    ArtifactError where `out` has something in it and `force` is not given.
    """
    target = Path(os.path.normpath(out))
    with _whole_or_absent(target, force) as part:
        save(lm, part, dtype=dtype, max_shard_size=max_shard_size)
        if readme is not None:
            shutil.copyfile(readme, part / "README.md")


def check_target(out: Path, force: bool) -> None:
    """ArtifactError unless `out` is free, an empty directory, or may be replaced."""
    if out.exists() and not out.is_dir():
        raise ArtifactError("is a file", str(out), "a directory, or a path where none is yet")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ArtifactError("is not empty", str(out), "name another --out, or replace it with --force")


@contextmanager
def _whole_or_absent(out: Path, force: bool) -> Iterator[Path]:
    """A locked, empty directory beside `out` that takes its name when the block ends well."""
    check_target(out, force)
    part, aside = out.with_name(out.name + ".part"), out.with_name(out.name + ".old")
    lock = DirectoryLock.take(part)
    try:
        if (part / "manifest.json").exists():
            raise ArtifactError("holds unfinished work of another command", str(part), "name another --out")
        for stale in part.iterdir():
            if stale.name != LOCK:
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        yield part
        fsync_tree(part)
        if out.exists():
            os.rename(out, aside)
        os.rename(part, out)
        fsync_directory(out.parent)
        lock.moved(out)
        lock.release(remove=True)
    finally:
        lock.release()
    shutil.rmtree(aside, ignore_errors=True)
