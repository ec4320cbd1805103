"""The command line's entry: parse, call, show. Help loads no torch; every error is one paragraph."""

import importlib.metadata
import json
import platform
import sys

from cyclopts import App

from maypole import __version__, catalogue
from maypole.core.errors import UserError

app = App(name="maypole", version=__version__, help="Improve a model on your text; see that it improved.")


@app.command
def systems(*, json_: bool = False) -> None:
    """List the thirty-three systems: what each is, its paper, its command, and whether it is built."""
    if json_:
        rows = [
            {"id": s.id, "title": s.title, "arxiv": s.arxiv, "room": s.room, "command": s.command, "built": s.built}
            for s in catalogue.SYSTEMS
        ]
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("room", "system", "title", "command", "arXiv", "built", box=None)
    for s in catalogue.SYSTEMS:
        table.add_row(s.room, s.id, s.title, f"maypole {s.command}", s.arxiv, "yes" if s.built else "not yet")
    Console().print(table)


@app.command
def env() -> None:
    """Print versions for a bug report; loads nothing heavy and names no user, host or path."""
    print(f"maypole {__version__}\npython {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "accelerate", "numpy"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} not installed")


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        app()
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2)
