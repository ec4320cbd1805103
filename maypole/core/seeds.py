"""One seed per config; everything random below takes a number derived from it by name and index, never by call order.

So batching, workers and resuming do not change what is drawn. Knows nothing about random number generators.
"""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the place called `names`, e.g. ``derive(0, "sampling", round, row)``."""
    text = "\x1f".join([str(seed), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, *names: str | int) -> float:
    """A number in [0, 1) that depends on `seed` and `names` only (53 random bits)."""
    return (derive(seed, *names) >> 10) / float(1 << 53)
