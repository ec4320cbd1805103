"""Room: know how good a model is: perplexity, tasks, win rates, judges. Imports no other room."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
