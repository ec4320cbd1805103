"""Floor 1: any Hugging Face model: loading, its blocks, packed attention, a chunked head. Knows nothing about rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
