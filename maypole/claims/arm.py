"""What an arm of a claim has measured, on the disk: a seed that was cut off does not measure it again.

Knows no experiment.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maypole.core.atomic import write_atomic


def once(folder: Path, measure: Callable[[], Any]) -> Any:
    """What `measure` says of the arm that it trains in `folder`, as JSON has it, from beside the folder if it is there.

    An arm that was cut off runs from its beginning, for what it measured on the way is in no checkpoint.
    """
    path = folder.with_name(f"{folder.name}.json")
    if not path.is_file():
        for left in (folder, folder.with_name(f"{folder.name}.part")):
            shutil.rmtree(left, ignore_errors=True)
        write_atomic(path, json.dumps(measure()))
    return json.loads(path.read_bytes())
