"""What all tests share."""

import gc


def pytest_collection_finish() -> None:
    """What is imported by now stays for good, and garbage is no longer looked for in it: every training run collects
    garbage, which takes it half a second among all that these libraries are made of."""
    gc.collect()
    gc.freeze()
