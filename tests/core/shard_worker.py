"""What the tests of shards run in other processes: functions that can be pickled, and a program to be killed."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.errors import DataError
from maypole.core.progress import set_quiet
from maypole.core.shards import map_shards


def base(value: int, log: Path) -> int:
    """Setup: notes that it ran."""
    with log.open("a") as file:
        file.write("setup\n")
    return value


def times(state: int, shard: int, path: Path, log: Path, die_at: int | None = None) -> dict[str, Any]:
    """Function: writes a number; at `die_at` its process is killed the first time."""
    once = log.with_name("died")
    path.write_text("half")
    if shard == die_at and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if shard < 0:
        raise DataError("negative", file="numbers", row=-shard)
    path.write_text(f"{state * shard}\n")
    with log.open("a") as file:
        file.write(f"{shard}\n")
    return {"value": state * shard}


def run(out: Path, shards: list[int], log: Path, *, die_at: int | None = None, **options: Any) -> Artifact:
    """The whole of a sharded command."""
    named = {f"part/{i:03}.txt": shard for i, shard in enumerate(shards)}
    with Artifact.open(out, kind="numbers", config={"base": 7}) as artifact:
        if not artifact.finished:
            function = partial(times, log=log, die_at=die_at)
            found = map_shards(partial(base, 7, log), function, named, out=artifact, title="numbers", **options)
            artifact.finish({"sum": sum(one["value"] for one in found)})
    return artifact


def slowly(state: None, shard: int, path: Path) -> None:
    """Function: takes a while, and says by a file that it began."""
    path.with_name(f"began-{shard}-{os.getpid()}").touch()
    time.sleep(60)
    path.write_text("done")


def nothing() -> None:
    return None


if __name__ == "__main__":
    set_quiet(True)
    with Artifact.open(sys.argv[1], kind="slow") as made:
        map_shards(nothing, slowly, {"a": 1, "b": 2}, out=made, title="slow", workers=2)
