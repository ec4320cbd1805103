"""Whether a model would load, told from its files. Reads no weights, and knows nothing about what they compute."""

from pathlib import Path

from maypole.models.adapters import adapter_config
from maypole.models.description import base_directory, weight_bytes
from maypole.models.hub import local
from maypole.models.loading import check_directory


def check_loadable(model: str | Path, *, adapter: str | None = None, revision: str | None = None) -> int:
    """Bytes that the weights of a model, and of an adapter of it, take; UserError names what would not load.

    A base that an adapter names by hub id is left to the hub.
    """
    path = local(model, revision=revision)
    itself = (path / "adapter_config.json").is_file()
    over = path if itself else local(adapter) if adapter else None
    base = base_directory(path) if itself else path
    total = 0
    if over is not None:
        adapter_config(over)
        total += weight_bytes(over)
    if base is not None:
        check_directory(base, str(model) if base == path else "")
        total += weight_bytes(base)
    return total
