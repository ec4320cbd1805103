"""One seed of one part of a claim, in a process of its own: ``python -m maypole.claims.seed MODULE PART SEED …``.

Knows nothing about verdicts. The process ends when the one that started it is gone.
"""

import dataclasses
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from maypole.core.atomic import write_atomic


def main(module: str, part: str, seed: str, workdir: str, result: str, stamp: str) -> None:
    """Measure, and write the effects to `result`, whole or not at all."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    start = time.monotonic()
    effects = importlib.import_module(module).PARTS[part].run(int(seed), Path(workdir))
    if not effects:
        raise ValueError(f"{module} part {part!r} measured nothing")
    figures = sorted(p.relative_to(workdir).as_posix() for p in Path(workdir, "figures").glob("*"))
    document = {
        "stamp": stamp,
        "effects": [dataclasses.asdict(e) for e in effects],
        "seconds": round(time.monotonic() - start, 2),
        "figures": figures,
    }
    write_atomic(Path(result), json.dumps(document, indent=2) + "\n")


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
