"""maypole: make open-weight language models better, cheaper and better understood.

The pole (engine, training loop, data, model access) stands in the middle; each method is a ribbon woven round it.
Importing this package loads no torch: everything below is fetched when it is used.
"""

__version__ = "0.1.0"
