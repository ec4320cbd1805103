from .cells import Cell as Cell
from .cells import cells as cells
from .config import GapConfig as GapConfig
from .running import Materials as Materials
from .running import gap as gap

__all__ = ["Cell", "GapConfig", "Materials", "cells", "gap"]
