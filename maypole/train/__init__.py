"""Floor 2: all optimisation goes through `fit`. Knows nothing about how text is generated."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
