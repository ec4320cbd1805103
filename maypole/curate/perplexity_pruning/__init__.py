"""Prune a corpus by the perplexity of a small reference model (arXiv 2405.20541): score once, select often.

Knows nothing about command lines.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
