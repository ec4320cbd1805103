"""The directory of a tour: one lock, one plan, one artifact per stage, and the report beside them.

Whatever happens to the process, the folder holds a whole plan, whole stages and a whole report. Knows nothing about
what stages do.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maypole.core import manifest as manifests
from maypole.core.artifact import Artifact
from maypole.core.atomic import is_temporary
from maypole.core.errors import ArtifactError
from maypole.core.lock import NAME as LOCK
from maypole.core.lock import DirectoryLock
from maypole.tour.plan import Plan
from maypole.tour.stages import BY_NAME

PLAN, REPORT = "plan.json", "report.html"
INPUTS = ("model", "corpus")
"""What is asked by a name for people and by an identity: ``NAME_identity``."""


class TourFolder:
    """`path` locked for this process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def plan(self, asked: Mapping[str, Any], make: Callable[[], Plan]) -> Plan:
        """The plan that is there, or a new one; ArtifactError where it is the plan of another tour."""
        path = self.path / PLAN
        if path.is_file():
            plan = Plan.read(path)
            differs = differences(plan.asked, asked)
            if differs:
                what = "holds another tour; what differs:\n    " + "\n    ".join(differs)
                raise ArtifactError(what, str(self.path), "name another --out")
            return plan
        make().write(path)
        return Plan.read(path)

    def stage(self, name: str, *, config: object, inputs: dict[str, object], seed: int) -> Artifact:
        """The artifact of a stage: found, continued or begun."""
        return Artifact.open(
            self.path / BY_NAME[name].directory, kind=f"tour/{name}", config=config, inputs=inputs, seed=seed
        )

    def seconds(self) -> float:
        """Wall time of all work on its stages so far, that of earlier runs included."""
        return sum(manifest.get("wall_seconds", 0.0) for manifest in self._manifests())

    def peak_memory(self) -> int:
        """Bytes, the most that any stage needed."""
        return max((manifest.get("peak_rss_bytes", 0) for manifest in self._manifests()), default=0)

    def unfinished(self, name: str) -> Path:
        """Where a stage works until it is whole."""
        return self.path / f"{BY_NAME[name].directory}.part"

    def log(self, name: str) -> list[str]:
        """What libraries said in a stage that is not whole."""
        path = self.unfinished(name) / "run.log"
        return path.read_text(errors="replace").splitlines() if path.is_file() else []

    def _manifests(self) -> Iterator[Mapping[str, Any]]:
        for stage in BY_NAME.values():
            for place in (stage.directory, f"{stage.directory}.part"):
                found = manifests.read(self.path / place)
                if found is not None:
                    yield found


@contextmanager
def opened(path: Path) -> Iterator[TourFolder]:
    """Lock `path`, made where it is missing; one that was made for nothing is removed again.

    ArtifactError where another process works on it, it cannot be written, or it holds something else.
    """
    path = Path(os.path.normpath(path))
    lock = DirectoryLock.take(path)
    try:
        for leftover in [p for p in path.iterdir() if is_temporary(p)]:
            leftover.unlink()
        strangers = [p.name for p in path.iterdir() if p.name != LOCK]
        if strangers and PLAN not in strangers:
            raise ArtifactError(f"holds no tour but {sorted(strangers)[0]}", str(path), "name another --out")
        yield TourFolder(path)
    finally:
        lock.release(remove=True)
        with suppress(OSError):  # not empty, as it should be
            path.rmdir()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was asked of one tour and of another, one line each: ``minutes: 6 then, 3 now``."""
    lines: list[str] = []
    for name in INPUTS:
        if then.get(f"{name}_identity") != now[f"{name}_identity"]:
            same = then.get(name) == now[name]
            lines.append(f"{name}: " + ("its content" if same else f"{then.get(name)} then, {now[name]} now"))
    for name, value in now.items():
        if name.removesuffix("_identity") not in INPUTS and then.get(name) != value:
            lines.append(f"{name}: {then.get(name)} then, {value} now")
    return lines
