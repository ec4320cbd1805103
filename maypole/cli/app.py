"""Words to a call: the table of commands as a cyclopts application. Knows nothing about what commands do.

A command is imported when it is chosen, and only then; listing them imports none.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from maypole import __version__, catalogue
from maypole.cli.commands import POLE, Table
from maypole.cli.help import EPILOGUE, Grouped
from maypole.core.errors import UserError

TOP_HELP = f"""\
maypole ROOM VERB [FLAGS]: improve a model on your text; see that it improved.
Start   tour (all of it, 6 min)   serve MODEL (API, playground)
Rooms   {" ".join(catalogue.ROOMS)}
Pole    {" ".join(POLE)}
Checks  systems  claim ID  env     (each: --help)
Always  --config FILE.yaml  --json  --quiet  --debug
"""

DEFAULT_VERB = "default"
"""Name inside its room of the command whose words are the room alone (``maypole serve MODEL``)."""

NOTHING_YET = "no command of it is built yet; see: maypole systems"


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the function and what it will be given."""

    function: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_help: bool

    def call(self) -> object:
        """Run it."""
        return self.function(*self.args, **self.kwargs)

    @property
    def out(self) -> Path | None:
        """Where the command was told to write, if it was."""
        out = self._setting("out")
        return Path(out) if out is not None else None

    @property
    def threads(self) -> int | None:
        """How many CPU threads were asked for."""
        return self._setting("threads")

    def _setting(self, name: str) -> Any:
        for value in (*self.args, *self.kwargs.values()):
            if dataclasses.is_dataclass(value) and getattr(value, name, None) is not None:
                return getattr(value, name)
        return None


def parse(words: list[str], config: Path | None, commands: Table) -> Invocation:
    """The call that `words` and the settings in the file `config` describe; UserError or CycloptsError if none."""
    path, rest = _route(words, commands)
    settings = _settings(config, path, commands)
    app = build(commands, chosen=path, settings=settings, source=str(config or ""))
    function, bound, _ = app.parse_args([*path, *rest], exit_on_error=False, print_error=False)
    is_help = getattr(function, "__module__", "").startswith("cyclopts")
    kwargs = {name: _typed(value) for name, value in bound.kwargs.items()}
    return Invocation(function, tuple(map(_typed, bound.args)), kwargs, is_help)


def build(commands: Table, *, chosen: tuple[str, ...] = (), settings: dict | None = None, source: str = "") -> App:
    """The application of `commands`; `chosen` shows its docstring, the others their one line."""
    config = [Dict(settings, source=source)] if settings else []
    app = App(
        name="maypole",
        version=__version__,
        help="Improve a model on your text; see that it improved.",
        config=config,
        # Several values a flag, and no --empty-x twin of each list.
        default_parameter=Parameter(consume_multiple=True, negative_iterable=""),
        group_parameters=Group("Parameters", validator=_whole_numbers),
    )
    rooms: dict[str, App] = {}
    for word, purpose in (catalogue.ROOMS | POLE).items():
        rooms[word] = App(name=word, help=_purpose(word, purpose, commands))
        app.command(rooms[word])
    for path, (target, line) in commands.items():
        full = _full(path, commands)
        parent = app if len(full) == 1 else rooms[full[0]]
        shown = full[-1] != DEFAULT_VERB
        if full == chosen:  # the one that is imported; without a line of its own it shows its docstring
            function = _flattened(target)
            usage = None if shown else _usage(path, function)
            beside = [f"maypole {' '.join(p)}" for p in commands if len(p) == 2 and path == p[:1]]
            also = f"Beside it: {', '.join(beside)}.\n" if beside else ""
            help = {"help_formatter": Grouped(function_at(target)), "help_epilogue": also + EPILOGUE}
            parent.command(function, name=full[-1], show=shown, usage=usage, **help)
        else:
            parent.command(target, name=full[-1], help=line, show=shown)
    return app


def _purpose(word: str, purpose: str, commands: Table) -> str:
    """What a room is for, what its word does by itself, and that nothing is there yet where that is so."""
    said = purpose[0].upper() + purpose[1:] + "."
    if not any(path[0] == word for path in commands):
        return f"{said} {NOTHING_YET[0].upper()}{NOTHING_YET[1:]}."
    if (word,) not in commands:
        return said
    _, line = commands[(word,)]
    return f"{said} By itself: {line[0].lower()}{line[1:]} See: maypole {word} --help."


def _usage(path: tuple[str, ...], function: Callable[..., object]) -> str:
    """The first line of a help whose command is a room's word alone."""
    kinds = inspect.signature(function).parameters.values()
    words = [p.name.upper() for p in kinds if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    return " ".join(["Usage: maypole", path[0], *words, "[OPTIONS]"])


def _whole_numbers(arguments: ArgumentCollection) -> None:
    """cyclopts rounds 1.5 where a whole number is wanted."""
    for argument in arguments:
        if {int, float} & {argument.hint, *typing.get_args(argument.hint)} == {int}:
            for token in argument.tokens:
                if "." in token.value and not float(token.value).is_integer():
                    raise UserError(f"{token.value} does not work", argument.name, "accepted: a whole number")


def _flattened(target: str) -> Callable[..., object]:
    """The function at `target`, its config's fields as flags without the config's name in front."""
    function = function_at(target)
    hints = typing.get_type_hints(function, include_extras=True)
    flat = {n: Annotated[h, Parameter(name="*")] if _is_config(h) else h for n, h in hints.items()}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> object:
        return function(*args, **kwargs)

    call.__annotations__ = flat
    return call


def function_at(target: str) -> Callable[..., object]:
    """What ``module:function`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _inlined(values: dict, hint: Any) -> dict:
    """`values` from a file with the mappings inside open mappings as JSON text: cyclopts takes one level of them."""
    kind = next((k for k in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(k)), None)
    hints = typing.get_type_hints(kind) if kind else {}

    def inlined(name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if hints.get(name) == dict[str, Any]:
            return {key: json.dumps(item) if isinstance(item, dict) else item for key, item in value.items()}
        return _inlined(value, hints.get(name))

    return {name: inlined(name, value) for name, value in values.items()}


def _typed(config: Any) -> Any:
    """`config` with numbers in its open mappings: cyclopts leaves what it has no type for as text."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    hints = typing.get_type_hints(type(config))
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    open_ones = {n: {k: _plain(v) for k, v in values[n].items()} for n in values if hints[n] == dict[str, Any]}
    nested = {n: _typed(v) for n, v in values.items() if dataclasses.is_dataclass(v)}
    changed = {n: v for n, v in (open_ones | nested).items() if v != values[n]}
    return dataclasses.replace(config, **changed) if changed else config


def _plain(value: Any) -> Any:
    """Text as YAML means it, 1e-3 included, which YAML 1.1 takes for text."""
    if not isinstance(value, str):
        return [_plain(item) for item in value] if isinstance(value, list) else value
    try:
        found = yaml.safe_load(value)
        if isinstance(found, dict):
            return found if value.startswith("{") else value
        return float(found) if isinstance(found, str) else found
    except (yaml.YAMLError, ValueError):
        return value


def _is_config(hint: Any) -> bool:
    return any(dataclasses.is_dataclass(h) for h in (hint, *typing.get_args(hint)))


def _full(path: tuple[str, ...], commands: Table) -> tuple[str, ...]:
    return (*path, DEFAULT_VERB) if len(path) == 1 and path[0] in catalogue.ROOMS | POLE else path


def _route(words: list[str], commands: Table) -> tuple[tuple[str, ...], list[str]]:
    """The command's path and the words that remain."""
    if not words or words[0].startswith("-"):
        return (), words
    first, groups = words[0], catalogue.ROOMS | POLE
    if first not in groups:
        if (first,) in commands:
            return (first,), words[1:]
        known = list(dict.fromkeys([*groups, *(p[0] for p in commands if len(p) == 1)]))
        raise UserError(f"no command {first!r}", expected=_nearest(first, known))
    verbs = [p[1] for p in commands if p[0] == first and len(p) == 2]
    if len(words) > 1 and words[1] in verbs:
        return (first, words[1]), words[2:]
    if (first,) in commands and len(words) > 1:
        return (first, DEFAULT_VERB), words[1:]
    if len(words) == 1 or words[1] in ("--help", "-h"):
        return (first,), ["--help"]
    raise UserError(f"{first} has no command {words[1]!r}", expected=_nearest(words[1], verbs))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5) or known
    return ("one of: " + ", ".join(near)) if near else NOTHING_YET


def _settings(file: Path | None, path: tuple[str, ...], commands: Table) -> dict | None:
    """The mapping in `file` under the command's path, which is where cyclopts looks for it."""
    if file is None:
        return None
    if not path:
        raise UserError("needs a command", "--config")
    try:
        document = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("not valid YAML: " + " ".join(str(error).split()), str(file)) from error
    if not isinstance(document, dict):
        raise UserError(f"expected a mapping of flags, found {type(document).__name__}", str(file))
    target, _ = next((c for p, c in commands.items() if _full(p, commands) == _full(path, commands)), ("", ""))
    for hint in typing.get_type_hints(function_at(target)).values() if target else ():
        document = _inlined(document, hint)
    for word in reversed(path):
        document = {word: document}
    return document
