"""Where numbers go besides metrics.jsonl: trackers that transformers knows, if their package is installed.

Knows nothing about what the numbers mean.
"""

from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from maypole.core.errors import UserError

TENSORBOARD = "tensorboard"
"""The folder of its event files in a result, and the name in `report_to`."""


def check_installed(report_to: tuple[str, ...]) -> None:
    """UserError names the package that is not there, before anything is loaded or computed for it."""
    for name in report_to:
        if find_spec(name) is None:
            raise UserError(f"the package {name} is not installed", "--report-to", f"pip install {name}")


def tensorboard(folder: Path) -> TrainerCallback:
    """Event files in `folder`; left to itself transformers puts them among the checkpoints, which do not last."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder)))
