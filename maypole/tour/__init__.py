"""Floor 4: the life of a model told in stages over the public API. Contains no method of its own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
