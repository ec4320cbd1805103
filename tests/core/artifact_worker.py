"""A process that makes an artifact of several units of work; tests kill it, crowd it and starve it of disk."""

import hashlib
import os
import sys
import time
from pathlib import Path

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic

UNITS = 12


def work(out: Path, pause: float, size: int = 200_000) -> None:
    with Artifact.open(out, kind="demo", config={"units": UNITS}, inputs={"data": str(out.parent / "in.txt")}) as a:
        if a.finished:
            return
        units = a.plan(lambda: {"units": UNITS})["units"]
        with a.child("part", kind="inner", seed=1) as child:
            if not child.finished:
                (child.path / "inner.txt").write_text("inner")
                child.finish({"n": 1})
        notes = sorted(a.checkpoints.glob("*.txt"))
        start = int(notes[-1].stem) if notes else 0
        a.metrics.cut(start)
        for unit in range(start, units):
            write_atomic(a.path / f"unit-{unit}.bin", hashlib.sha512(str(unit).encode()).digest() * (size // 64))
            a.metrics.log(unit + 1, loss=1 / (unit + 1))
            write_atomic(a.checkpoints / f"{unit + 1:03}.txt", "done")
            time.sleep(pause)
        a.finish({"units": units})


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.argv = ["maypole", "demo"]
    work(Path("out"), float(os.environ.get("PAUSE", "0")))
