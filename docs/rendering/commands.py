"""Every command with its help, flags and examples, from the command line's own parser. Runs no command."""

import dataclasses
import functools
import inspect
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Argument

from maypole.catalogue import ROOMS
from maypole.cli.app import DEFAULT_VERB, build, function_at
from maypole.cli.commands import COMMANDS
from maypole.cli.help import owner
from maypole.cli.help import shared as shared_settings
from rendering.tables import table

COLUMNS = ("flag", "value", "default", "meaning")
SHARED: dict[type, str] = {kind: f"{name} flags" for kind, name in shared_settings().items()}
"""Settings that several commands inherit -> the heading under which their flags stand once."""


def commands() -> str:
    """A section per command, as `maypole COMMAND --help` has it."""
    parts = []
    for path in COMMANDS:
        said, examples = documentation(path)
        parts += [f"## maypole {' '.join(path)}", "", said, ""]
        parts += ["```", *examples, "```", ""] if examples else []
        flags = [(_owner(path, argument), argument) for argument in _arguments(path)]
        own = [_row(argument) for owner, argument in flags if owner is None]
        inherited = [_also(*owner) for owner in dict.fromkeys(owner for owner, _ in flags) if owner]
        parts += [table(COLUMNS, own), ""] if own else []
        parts += [f"Also the {_listed(inherited)}.", ""] if inherited else []
    return "\n".join(parts).rstrip()


def shared() -> str:
    """The flags that several commands inherit unchanged, a section per kind."""
    parts = []
    for kind, title in SHARED.items():
        found = {a.name: _row(a) for path in COMMANDS for a in _arguments(path) if _owner(path, a) == (kind, "")}
        parts += [f"## {title[0].upper()}{title[1:]}", "", table(COLUMNS, found.values()), ""]
    return "\n".join(parts).rstrip()


def documentation(path: tuple[str, ...]) -> tuple[str, list[str]]:
    """What the command's docstring says, and its examples."""
    text = inspect.cleandoc(_app(path).help)
    paragraphs = [p for p in text.split("\n\n") if not p.startswith("    ")]
    examples = [line.strip() for line in text.splitlines() if line.startswith("    maypole ")]
    return re.sub(r"(?<![\w`-])--[a-z][\w.-]*\w", lambda flag: f"`{flag[0]}`", "\n\n".join(paragraphs)), examples


@dataclass(frozen=True)
class _Hint:
    """How a type is given on the command line."""

    one: str
    many: bool = False

    def __str__(self) -> str:
        return f"{self.one} …" if self.many else self.one


def value(hint: Any) -> str:
    """What follows a flag of this type: nothing for a switch."""
    return str(_hint(hint))


def default(found: Any) -> str:
    """A default as one would write it after the flag."""
    if found in (None, (), {}, dataclasses.MISSING, inspect.Parameter.empty):
        return ""
    if isinstance(found, bool):
        return "on" if found else "off"
    if isinstance(found, tuple):
        return " ".join(f"`{item}`" for item in found)
    return f"`{found}`"


def _hint(hint: Any) -> _Hint:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _hint(options[0])
    if origin in (typing.Union, types.UnionType):
        found = [_hint(Literal[True, False] if o is bool else o) for o in options if o is not type(None)]
        return _Hint(" or ".join(dict.fromkeys(h.one for h in found if h.one)), any(h.many for h in found))
    if origin is Literal:
        return _Hint(" or ".join(f"`{str(o).lower() if isinstance(o, bool) else o}`" for o in options))
    if origin is tuple:
        return _Hint(_hint(options[0]).one, many=True)
    if origin is dict:
        return _Hint("`.NAME VALUE`", many=True)
    names = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
    return _Hint(names[hint])


def _app(path: tuple[str, ...]) -> App:
    full = (*path, DEFAULT_VERB) if path[0] in ROOMS and len(path) == 1 else path
    app = build(COMMANDS, chosen=full)
    for word in full:
        app = app[word]
    return app


@functools.cache
def _arguments(path: tuple[str, ...]) -> list[Argument]:
    """What the command takes, required first."""
    found = [a for a in _app(path).assemble_argument_collection(parse_docstring=True) if a.show]
    return sorted(found, key=lambda a: not a.required)


def _row(argument: Argument) -> tuple[str, ...]:
    given = "**required**" if argument.required else default(argument.field_info.default)
    switches = [n for n in argument.names if not n.startswith("--empty-") and ".empty-" not in n]
    names = switches if given == "on" else switches[:1]
    return " ".join(f"`{name}`" for name in names), value(argument.hint), given, argument.parameter.help or ""


def _owner(path: tuple[str, ...], argument: Argument) -> tuple[type, str] | None:
    return owner(function_at(COMMANDS[path][0]), argument.name)


def _also(kind: type, prefix: str) -> str:
    title = SHARED[kind]
    link = f"[{title}](#{title.replace(' ', '-')})"
    return f"{link} as `{prefix}NAME`" if prefix else link


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
