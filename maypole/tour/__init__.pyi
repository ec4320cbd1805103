from .options import TourOptions
from .run import run_tour

__all__ = ["TourOptions", "run_tour"]
