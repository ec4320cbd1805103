"""The tour's report: data in, one HTML file out. Knows nothing about how stages work or where results lie."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
