"""What maypole itself is: its systems and its versions. Loads nothing heavy, names no user, host or path."""

import importlib.metadata
import platform
from dataclasses import dataclass

from maypole import __version__, catalogue

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "accelerate", "numpy")


@dataclass(frozen=True)
class SystemRow:
    """One line of `maypole systems`."""

    room: str
    id: str
    title: str
    command: str
    arxiv: str
    built: bool


def systems() -> tuple[SystemRow, ...]:
    """List the systems: what each is, its paper, its command."""
    return tuple(SystemRow(s.room, s.id, s.title, s.command, s.arxiv, s.built) for s in catalogue.SYSTEMS)


def env() -> dict[str, str]:
    """Print versions for a bug report."""
    versions = {
        "maypole": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
