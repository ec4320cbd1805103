"""The flags that every command understands, whatever it is. Knows nothing about commands.

``--config FILE.yaml`` fills any flags, ``--json`` prints one document, ``--quiet`` shows no progress and no warnings,
``--debug`` shows library logs and tracebacks.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from maypole.core.errors import UserError


@dataclass(frozen=True)
class Options:
    """The flags of every command."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    config: Path | None = None


def split(argv: list[str]) -> tuple[Options, list[str]]:
    """Take the general flags out of `argv`; what follows ``--`` is left alone."""
    options, rest, words = Options(), [], iter(argv)
    for word in words:
        if word == "--":
            return options, [*rest, word, *words]
        if word in ("--json", "--quiet", "--debug"):
            options = replace(options, **{word[2:]: True})
        elif word == "--config":
            options = replace(options, config=_file(next(words, None)))
        elif word.startswith("--config="):
            options = replace(options, config=_file(word.removeprefix("--config=")))
        else:
            rest.append(word)
    return options, rest


def _file(name: str | None) -> Path:
    if not name:
        raise UserError("needs a file", "--config", "--config FILE.yaml")
    path = Path(name)
    if not path.is_file():
        raise UserError("is not a file" if path.exists() else "does not exist", f"--config {name}")
    return path
