"""Floor 2: all inference (generate, score, embed) goes through here. Knows nothing about training or methods."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
