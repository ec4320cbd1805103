"""Floor 0: artifacts, config, errors, progress, seeds, statistics, judges, theme. Knows no torch and no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
