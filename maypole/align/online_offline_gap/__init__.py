"""Is fresh data worth its cost (arXiv 2405.08448)? The same loss on a policy's own fresh answers and on a fixed set,
compared at equal distance from the policy that both began with, and experiments on where the difference comes from.

Knows nothing about command lines.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
