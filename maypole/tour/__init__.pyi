from .options import TourOptions
from .run import run

__all__ = ["TourOptions", "run"]
