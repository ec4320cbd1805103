"""Floor 4: the embedded world whose truth is known, and its zoo of small checkpoints. No room imports it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
