"""How a command's help reads: what it must be given, its own flags, then those that many commands share.

Knows nothing about what the flags do; whose a flag is follows from the settings that declare it.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

from maypole.core.config import ModelOptions, RunOptions

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

EPILOGUE = """\
Of every command: --config FILE.yaml fills any of its flags; --json prints one document; --quiet shows no progress;
--debug shows tracebacks.
"""


@functools.cache
def shared() -> dict[type, str]:
    """Settings that several commands inherit -> what they are called."""
    from maypole.train.config import TrainConfig

    return {ModelOptions: "model", RunOptions: "run", TrainConfig: "training"}


def owner(function: Callable[..., object], flag: str) -> tuple[type, str] | None:
    """The shared settings that hold `flag` unchanged, and the prefix under which the command takes them."""
    first = flag.removeprefix("--").partition(".")[0]
    name = first.replace("-", "_")
    for config in _configs(function):
        nested = typing.get_type_hints(config).get(name)
        if isinstance(nested, type) and nested in shared():
            return nested, f"--{first}."
        for kind in shared():
            if issubclass(config, kind) and _same(config, kind, name):
                return kind, ""
    return None


@dataclass(frozen=True)
class Grouped:
    """Shows one panel of flags as several: the command's own, required ones first, then a panel per shared kind."""

    function: Callable[..., object]

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: HelpPanel) -> None:
        panels: dict[tuple[int, str], list[HelpEntry]] = {}
        for entry in panel.entries:
            panels.setdefault(self._place(entry, str(panel.title)), []).append(_plain(entry))
        for (_, title), entries in sorted(panels.items()):
            entries.sort(key=lambda entry: not entry.required)
            DefaultFormatter()(console, options, panel.copy(title=title, entries=entries))

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        """The first line."""
        DefaultFormatter().render_usage(console, options, usage)

    def render_description(self, console: "Console", options: "ConsoleOptions", description: Any) -> None:
        """What the command does."""
        DefaultFormatter().render_description(console, options, description)

    def _place(self, entry: HelpEntry, own: str) -> tuple[int, str]:
        """The number and the title of the panel that `entry` belongs to."""
        found = owner(self.function, entry.positive_names[0]) if entry.positive_names else None
        if found is None:
            return -1, own
        kind, prefix = found
        return list(shared()).index(kind), shared()[kind].capitalize() + (f" {prefix}NAME" if prefix else "")


def _plain(entry: HelpEntry) -> HelpEntry:
    """`entry` without what says nothing: the default of an empty list, and the opposite of a switch that is off."""
    if entry.default == "False":
        return entry.copy(default=None, negative_names=())
    shown = {"()": None, "{}": None, "True": "on"}.get(entry.default or "", entry.default)
    if shown and shown.startswith("("):
        shown = " ".join(word.strip(" '") for word in shown.strip("(,)").split(","))
    return entry.copy(default=shown)


def _configs(function: Callable[..., object]) -> list[type]:
    """The settings that a command's function takes."""
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    kinds = [k for hint in hints.values() for k in (hint, *typing.get_args(hint))]
    return [k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)]


def _same(config: type, kind: type, name: str) -> bool:
    ours, theirs = ({f.name: f for f in dataclasses.fields(k)}.get(name) for k in (config, kind))
    return (
        ours is not None and theirs is not None and (ours.default, ours.metadata) == (theirs.default, theirs.metadata)
    )
