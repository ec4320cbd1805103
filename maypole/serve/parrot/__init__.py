"""Parrot: programs of many calls, run where the engines are, with what their prompts share computed once.

Knows nothing about the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
