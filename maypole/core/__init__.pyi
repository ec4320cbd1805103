from .artifact import Artifact as Artifact
from .config import DryRun as DryRun
from .config import ModelOptions as ModelOptions
from .config import RunOptions as RunOptions
from .config import setting as setting
from .errors import MaypoleError as MaypoleError
from .errors import UserError as UserError
from .identity import cache_dir as cache_dir
from .judge import Preference as Preference
from .judge import Reward as Reward
from .metrics import Metrics as Metrics
from .progress import track as track
from .seeds import derive as derive
from .seeds import uniform as uniform
from .statistics import Interval as Interval
from .statistics import bootstrap as bootstrap
from .statistics import paired_bootstrap as paired_bootstrap

__all__ = [
    "Artifact",
    "DryRun",
    "Interval",
    "MaypoleError",
    "Metrics",
    "ModelOptions",
    "Preference",
    "Reward",
    "RunOptions",
    "UserError",
    "bootstrap",
    "cache_dir",
    "derive",
    "paired_bootstrap",
    "setting",
    "track",
    "uniform",
]
