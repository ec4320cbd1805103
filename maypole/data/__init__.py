"""Floor 1: typed rows: reading, checking and converting what users have. Knows nothing about models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
