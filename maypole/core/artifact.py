"""A result is a directory with a manifest: made in ``OUT.part``, continued by the same command, renamed when whole.

Kill the process at any moment: what stands at OUT is whole or absent, and the same command goes on from the last
checkpoint. Knows nothing about what the result holds.
"""

import json
import logging
import os
import shlex
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from maypole.core import manifest as manifests
from maypole.core.atomic import fsync_directory, fsync_tree, is_temporary, write_atomic
from maypole.core.clock import Clock
from maypole.core.config import to_yaml
from maypole.core.errors import ArtifactError, UserError
from maypole.core.lock import NAME as LOCK
from maypole.core.lock import DirectoryLock
from maypole.core.metrics import Metrics
from maypole.core.runlog import RunLog

_log = logging.getLogger(__name__)


class Artifact:
    """A finished result, or one in the making.

    `path` is where its files are: ``OUT.part`` while it is made, ``OUT`` when it is whole. `manifest` is the JSON
    document in ``manifest.json``: kind, state ("running", "interrupted", "failed", "finished"), key, config, inputs,
    versions, seed, wall_seconds, cpu_seconds, peak_rss_bytes, metrics, files, children, command.

    Examples
    --------
    >>> with Artifact.open(out, kind="rows", config=config, inputs={"data": "a.jsonl"}) as artifact:
    ...     if not artifact.finished:
    ...         plan = artifact.plan(lambda: {"steps": 100})
    ...         ...
    ...         artifact.finish({"rows": 9})
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.out = path
        self._lock: DirectoryLock | None = None
        self._run_log: RunLog | None = None
        self._parent: Artifact | None = None
        self._clock = Clock(manifest)
        self.metrics = Metrics(path / "metrics.jsonl", self._note_time)

    @property
    def finished(self) -> bool:
        """Whether the result is whole; nothing about it changes any more."""
        return self.manifest["state"] == "finished"

    @property
    def key(self) -> str:
        """Hash of kind, deciding settings, seed and the inputs' identities."""
        return self.manifest["key"]

    @property
    def resumed(self) -> bool:
        """Whether an earlier run of the same command left work that this one continues."""
        return self._clock.resumed

    @property
    def checkpoints(self) -> Path:
        """Directory for what a resumed run starts from; it is gone when the result is whole."""
        path = self.path / manifests.CHECKPOINTS
        if not self.finished:
            path.mkdir(exist_ok=True)
        return path

    @classmethod
    def open(
        cls,
        out: str | Path,
        *,
        kind: str,
        config: object = None,
        inputs: dict[str, object] | None = None,
        seed: int = 0,
        force: bool = False,
    ) -> "Artifact":
        """Start, continue or find the result at `out`.

        Returns the finished result at once when it is there already. ArtifactError when `out` is in use by another
        process, holds another result, or cannot be written.

        Parameters
        ----------
        config
            Dataclass or mapping; fields made by `setting(key=False)` do not decide the result.
        inputs
            Name -> path, artifact or live object (see `core.identity.identity`).
        force
            Take the place of a result, or of unfinished work, that another command left at `out`.
        """
        out = Path(os.path.normpath(out))
        document = manifests.describe(out, kind, config, inputs or {}, seed)
        found = _finished_at(out, document, force)
        if found is not None:
            return found
        return cls._begin(out, document, config, force, parent=None)

    @classmethod
    def load(cls, path: str | Path) -> "Artifact":
        """The finished result at `path`; ArtifactError when there is none or it is not whole."""
        path = Path(os.path.normpath(path))
        document = manifests.read(path)
        if document is None:
            unfinished = manifests.read(_part(path))
            if unfinished is not None:
                raise ArtifactError("is not finished", str(path), f"continue with: {command_line(unfinished)}")
            what = "has no manifest.json" if path.exists() else "does not exist"
            raise ArtifactError(what, str(path), "a directory that a maypole command wrote")
        if document["state"] != "finished":
            raise ArtifactError("is not finished", str(path), f"continue with: {command_line(document)}")
        return cls(path, document)

    @classmethod
    def find(
        cls,
        out: str | Path,
        *,
        kind: str,
        config: object = None,
        inputs: dict[str, object] | None = None,
        seed: int = 0,
        force: bool = False,
    ) -> "Artifact | None":
        """What `open` would go on with: the same command's result or unfinished work, or None. Changes nothing.

        ArtifactError where another command's result or work is in the way, as there.
        """
        out = Path(os.path.normpath(out))
        document = manifests.describe(out, kind, config, inputs or {}, seed)
        found = _finished_at(out, document, force)
        if found is not None:
            return found
        begun = _begun(_part(out), document, force)
        return None if begun is None else cls(_part(out), begun)

    def child(
        self,
        name: str,
        *,
        kind: str,
        config: object = None,
        inputs: dict[str, object] | None = None,
        seed: int = 0,
    ) -> "Artifact":
        """A result inside this one, with its own manifest; final when whole, though this one is still in the making."""
        out = self.path / name
        document = manifests.describe(out, kind, config, inputs or {}, seed)
        found = _finished_at(out, document, force=False)
        if found is None:
            if self.finished:
                raise ArtifactError(
                    f"has no part called {name!r}", str(self.path), ", ".join(self.manifest["children"])
                )
            return self._begin(out, document, config, force=False, parent=self)
        self._adopt(found, name)
        return found

    def plan(self, compute: Callable[[], dict]) -> dict:
        """What the run decided from the machine: computed once, on the disk before the first unit of work."""
        path = self.path / "plan.json"
        if path.exists():
            return json.loads(path.read_bytes())
        if self.finished:
            raise ArtifactError("has no plan.json", str(self.path))
        write_atomic(path, json.dumps(compute(), indent=2) + "\n")
        return json.loads(path.read_bytes())

    def finish(self, metrics: dict[str, Any] | None = None, **extra: Any) -> "Artifact":
        """Make the result whole: record `metrics` and `extra`, have everything on the disk, rename to OUT."""
        if self.finished:
            return self
        self._stop_log()
        self._check_children()
        for leftover in [p for p in self.path.rglob(".*.tmp") if is_temporary(p)]:
            leftover.unlink()
        document = {**self.manifest, **extra, "metrics": {**self.manifest["metrics"], **(metrics or {})}}
        document.pop("error", None)
        document |= {"files": manifests.list_files(self.path, document["children"])}
        document |= {"finished_at": datetime.now(UTC).isoformat(timespec="seconds"), **self._clock.read()}
        fsync_tree(self.path)
        manifests.write(self.path, {**document, "state": "finished"})
        self.manifest = {**document, "state": "finished"}
        self._publish()
        if self._parent is not None:
            self._parent._adopt(self, self.out.relative_to(self._parent.path).as_posix())
        return self

    def close(self, state: str = "interrupted", error: str = "") -> None:
        """Stop working on an unfinished result, so that the same command can continue it later."""
        self._stop_log()
        if self._lock is None:
            return
        if self.finished:  # interrupted on the last step, the rename: the next opening takes it
            self._release()
            return
        try:
            self.manifest |= {"state": state, **self._clock.read()} | ({"error": error} if error else {})
            manifests.write(self.path, self.manifest)
        except OSError as problem:
            # Whatever stopped the run (a full disk, often) is what the user needs to read.
            _log.warning("the state of %s could not be written: %s", self.path, problem)
        finally:
            self._release()

    def __enter__(self) -> "Artifact":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        if isinstance(error, UserError) and self._lock is not None and not manifests.has_work(self.path):
            self._drop()  # or the command, once it is put right, would find another's unfinished work in its way
            return
        self.close("failed" if failed else "interrupted", str(error)[:500] if failed else "")

    @classmethod
    def _begin(cls, out: Path, document: dict, config: object, force: bool, parent: "Artifact | None") -> "Artifact":
        part = _part(out)
        lock = DirectoryLock.take(part)
        try:
            _recover(out)
            found = _finished_at(out, document, force)
            if found is not None:  # another process finished it while we waited
                lock.release(remove=True)
                _remove_empty(part)
                return found
            artifact = cls(part, _continued(part, document, force))
            artifact.out, artifact._lock, artifact._parent = out, lock, parent
            if artifact.finished:  # killed between the last fsync and the rename
                artifact._publish()
                if parent is not None:
                    parent._adopt(artifact, out.relative_to(parent.path).as_posix())
                return artifact
            manifests.write(part, artifact.manifest)
            if config is not None:
                write_atomic(part / "config.yaml", to_yaml(config))
        except BaseException:
            lock.release()
            raise
        if parent is None:
            artifact._run_log = RunLog(part / "run.log")
            artifact._run_log.attach()
        return artifact

    def _publish(self) -> None:
        """Checkpoints go, the old result steps aside, the new one takes its name, the old one is deleted."""
        shutil.rmtree(self.path / manifests.CHECKPOINTS, ignore_errors=True)
        aside = _aside(self.out)
        if self.out.exists() and not _remove_empty(self.out):
            os.rename(self.out, aside)
        os.rename(self.path, self.out)
        fsync_directory(self.out.parent)
        self.path = self.out
        self.metrics = Metrics(self.path / "metrics.jsonl")
        if self._lock is not None:
            self._lock.moved(self.out)
            self._release(remove=True)
        if aside.exists():
            shutil.rmtree(aside)

    def _drop(self) -> None:
        self._stop_log()
        shutil.rmtree(self.path)
        self._release()

    def _adopt(self, child: "Artifact", name: str) -> None:
        if not self.finished and self.manifest["children"].get(name) != child.key:
            self.manifest["children"][name] = child.key
            self._save()

    def _check_children(self) -> None:
        open_parts = [p for p in self.path.rglob("*.part") if (p / manifests.FILE).exists()]
        if open_parts:
            raise ArtifactError("is not finished, so the whole cannot be", str(open_parts[0]))

    def _note_time(self) -> None:
        if self._lock is not None and self._clock.due():
            self._save()

    def _save(self) -> None:
        self.manifest |= self._clock.read()
        manifests.write(self.path, self.manifest)

    def _release(self, *, remove: bool = False) -> None:
        if self._lock is not None:
            self._lock.release(remove=remove)
            self._lock = None

    def _stop_log(self) -> None:
        if self._run_log is not None:
            self._run_log.detach()
            self._run_log = None


def command_line(manifest: dict) -> str:
    """The command that made, or continues, the result of `manifest`."""
    return shlex.join(manifest.get("command") or ["maypole"])


def _part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _aside(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def _finished_at(out: Path, document: dict, force: bool) -> Artifact | None:
    """The finished result at `out` if it has the key of `document`; None where there is room for a new one."""
    if out.exists() and not out.is_dir():
        raise ArtifactError("is a file", str(out), "a directory, or a path where none is yet")
    found = manifests.read(out)
    if found is None:
        if out.exists() and any(p.name != LOCK for p in out.iterdir()):
            raise ArtifactError(
                "is a directory that maypole did not make", str(out), "name a new one; --force never deletes such files"
            )
        return None
    if found["state"] == "finished" and found["key"] == document["key"]:
        (out / LOCK).unlink(missing_ok=True)
        return Artifact(out, found)
    if force:
        return None
    what = "holds the result of another command; what differs:\n    "
    raise ArtifactError(
        what + "\n    ".join(manifests.differences(found, document)),
        str(out),
        "name another --out, or replace it with --force",
    )


def _begun(part: Path, document: dict, force: bool) -> dict | None:
    """The manifest in `part` if its key is that of `document`; None where its work is nobody's or may be dropped."""
    found = manifests.read(part)
    if found is None or found["key"] == document["key"]:
        return found
    if not force and found.get("reusable", True):
        raise ArtifactError(
            "holds unfinished work of another command; what differs:\n    "
            + "\n    ".join(manifests.differences(found, document)),
            str(part),
            f"continue that one: {command_line(found)}; or drop it with --force; or name another --out",
        )
    return None


def _continued(part: Path, document: dict, force: bool) -> dict:
    """The manifest to go on with in the locked directory `part`: its own, or `document` in an emptied one."""
    if manifests.read(part) is None:
        strangers = [p for p in part.iterdir() if p.name != LOCK and not is_temporary(p)]
        if strangers:
            raise ArtifactError("has files that maypole did not make", str(strangers[0]), "name another --out")
        return document
    found = _begun(part, document, force)
    if found is not None:
        if found["state"] == "finished":
            return found
        kept = ("wall_seconds", "cpu_seconds", "peak_rss_bytes", "children", "metrics")
        return {**document, **{name: found[name] for name in kept}}
    for path in part.iterdir():
        if path.name == LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return document


def _recover(out: Path) -> None:
    """Put right what a kill in the middle of replacing an old result left behind."""
    aside = _aside(out)
    if manifests.read(aside) is None:
        return
    if out.exists():
        shutil.rmtree(aside)
    elif (manifests.read(_part(out)) or {}).get("state") != "finished":
        os.rename(aside, out)


def _remove_empty(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False
    return True
