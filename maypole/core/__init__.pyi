from .artifact import Artifact as Artifact
from .config import DryRun as DryRun
from .config import ModelOptions as ModelOptions
from .config import RunOptions as RunOptions
from .config import setting as setting
from .errors import MaypoleError as MaypoleError
from .errors import UserError as UserError
from .identity import cache_dir as cache_dir
from .metrics import Metrics as Metrics
from .progress import track as track
from .seeds import derive as derive
from .seeds import uniform as uniform

__all__ = [
    "Artifact",
    "DryRun",
    "MaypoleError",
    "Metrics",
    "ModelOptions",
    "RunOptions",
    "UserError",
    "cache_dir",
    "derive",
    "setting",
    "track",
    "uniform",
]
