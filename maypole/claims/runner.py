"""A claim from its seeds to its verdict: each seed in its own process, side by side, kept, never run twice. One that
was cut off goes on where it was, unless its numbers are seconds.

Knows nothing about what a claim measures.
"""

import difflib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import maypole
from maypole import catalogue
from maypole.claims.effects import Effect, Part
from maypole.claims.verdict import combine
from maypole.core.atomic import write_atomic
from maypole.core.errors import UserError
from maypole.core.identity import digest
from maypole.core.lock import DirectoryLock
from maypole.core.manifest import versions
from maypole.core.progress import track

RESULT = "claim.json"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class ClaimResult:
    """What a claim said and whether it holds; `errors` names seeds that failed, `missing` parts not yet written."""

    id: str
    statement: str
    effects: list[dict[str, Any]]
    seeds: list[int]
    seconds: float
    figures: list[str]
    versions: dict[str, str]
    holds: bool
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The result file's document; `errors` and `missing` only where there are some."""
        optional = ("errors", "missing")
        return {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in optional or getattr(self, n)}


@dataclass(frozen=True)
class _Job:
    module: str
    part: str
    seed: int
    folder: Path
    stamp: str
    timed: bool

    @property
    def result(self) -> Path:
        return self.folder / f"seed-{self.seed}.json"

    @property
    def workdir(self) -> Path:
        return self.folder / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / f"seed-{self.seed}.log"

    def stored(self) -> dict[str, Any] | None:
        """What an earlier run measured with the same code, if it did."""
        try:
            document = json.loads(self.result.read_bytes())
        except FileNotFoundError:
            return None
        return document if document["stamp"] == self.stamp else None

    def prepare(self) -> bool:
        """Make room for the seed's work; True where the same code has left some that is gone on from."""
        begun = self.workdir / ".begun-by"
        if not self.timed and begun.is_file() and begun.read_text() == self.stamp:
            return True
        shutil.rmtree(self.workdir, ignore_errors=True)
        self.workdir.mkdir(parents=True)
        write_atomic(begun, self.stamp)
        return False


def run_claim(
    name: str, *, seeds: Sequence[int], out: Path, jobs: int | None = None, package: str = "maypole.claims"
) -> ClaimResult:
    """Measure the claim `name` (``ID`` or ``ID/PART``) with each of `seeds`; the verdict goes to ``out/claim.json``.

    A seed that fails fails the claim; none is dropped. Seeds measured earlier by the same code are not run again, and
    one that was cut off goes on from what is in its directory, where the part is not timed.
    UserError for an unknown id, a system without a claim file, or an unknown part.
    """
    id, _, wanted = name.partition("/")
    module, parts, statement = load_claim(id, package)
    if wanted and wanted not in parts:
        raise UserError(f"claim {id} has no part {wanted!r}", expected=f"one of: {', '.join(p for p in parts if p)}")
    chosen = {wanted: parts[wanted]} if wanted else parts
    missing = [part for part, what in chosen.items() if what is None]
    stamp = _stamp(module)
    out.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock.take(out)
    try:
        plan = {
            p: [_Job(module, p, s, out / (p or "all"), stamp, w.timed) for s in seeds] for p, w in chosen.items() if w
        }
        errors = _run(f"claim {name}", [job for made in plan.values() for job in made], jobs or _cores())
        result = _verdict(name, statement, plan, errors, missing, out)
        write_atomic(out / RESULT, json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
        return result
    finally:
        lock.release(remove=True)


def load_claim(id: str, package: str = "maypole.claims") -> tuple[str, dict[str, Part | None], str]:
    """Module name, parts (None: announced and not yet written) and statement of the claim `id`."""
    module = f"{package}.{id.replace('-', '_')}"
    known = [s.id for s in catalogue.SYSTEMS]
    if not id.replace("-", "_").isidentifier() or importlib.util.find_spec(module) is None:
        if id in known:
            raise UserError(f"the claim of {id} is not written yet", expected="see: maypole systems")
        near = difflib.get_close_matches(id, known, n=3)
        raise UserError(f"no claim {id!r}", expected=f"did you mean {', '.join(near)}?" if near else "maypole systems")
    found = importlib.import_module(module)
    if not hasattr(found, "PARTS") or not hasattr(found, "STATEMENT"):
        raise UserError(f"no claim {id!r}", expected="maypole systems")
    return module, found.PARTS, found.STATEMENT


def _run(title: str, jobs: list[_Job], workers: int) -> dict[str, str]:
    """Run what is not stored yet, timed ones alone at the end; returns what went wrong by ``part seed``."""
    errors: dict[str, str] = {}
    children: set[subprocess.Popen] = set()
    stop = threading.Event()
    with track(title, len(jobs), "seeds") as step:
        for timed, width in ((False, workers), (True, 1)):
            pool = ThreadPoolExecutor(width)
            try:
                running = {pool.submit(_measure, job, children, stop): job for job in jobs if job.timed == timed}
                for future in as_completed(running):
                    job, error = running[future], future.result()
                    if error:
                        errors[f"{job.part} seed {job.seed}".strip()] = error
                    step(1)
            except BaseException:
                stop.set()
                for child in list(children):
                    child.kill()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
    return errors


def _measure(job: _Job, children: set[subprocess.Popen], stop: threading.Event) -> str:
    """Run one seed unless it is stored; returns why it failed, or nothing."""
    if job.stored() is not None or stop.is_set():
        return ""
    continued = job.prepare()
    words = (job.module, job.part, str(job.seed), str(job.workdir), str(job.result), job.stamp)
    with job.log.open("wb") as log:
        command = [sys.executable, "-m", "maypole.claims.seed", *words]
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **_ONE_THREAD})
        children.add(child)
        code = child.wait()
        children.discard(child)
    if code == 0:
        return ""
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    anew = f"; it went on from what was in {job.workdir}: without that it begins anew" if continued else ""
    return f"{lines[-1] if lines else f'ended with code {code}'} (see {job.log}{anew})"


def _verdict(
    name: str, statement: str, plan: dict[str, list[_Job]], errors: dict[str, str], missing: list[str], out: Path
) -> ClaimResult:
    effects: list[dict[str, Any]] = []
    seconds, figures = 0.0, []
    for part, jobs in plan.items():
        stored = [(job, document) for job in jobs if (document := job.stored()) is not None]
        seconds += sum(document["seconds"] for _, document in stored)
        for job, document in stored:
            figures += [(job.workdir / f).relative_to(out).as_posix() for f in document["figures"]]
        if len(stored) == len(jobs):
            by_seed = [[Effect(**e) for e in document["effects"]] for _, document in stored]
            effects += combine(by_seed, f"{part}/" if part else "")
    holds = bool(effects) and not errors and not missing and all(e["holds"] for e in effects)
    seeds = [job.seed for job in next(iter(plan.values()), [])]
    return ClaimResult(name, statement, effects, seeds, round(seconds, 2), figures, versions(), holds, errors, missing)


def _stamp(module: str) -> str:
    """Hash of all of maypole's code and the claim's: a number measured by other code is measured again."""
    files = sorted(Path(maypole.__file__).parent.rglob("*.py"))
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin:
        files.append(Path(spec.origin))
    return digest(*(f.read_bytes() for f in files))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
