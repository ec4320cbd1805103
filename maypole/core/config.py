"""Settings of a verb: frozen dataclasses whose fields say what they mean and whether they change the result.

Knows nothing about any method's settings, nor about the command line that fills them in.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from maypole.core.errors import ConfigError, UserError
from maypole.core.identity import plain

Config = TypeVar("Config")


def setting(
    default: Any = MISSING, *, key: bool = True, input: bool = False, factory: Any = MISSING, help: str = ""
) -> Any:
    """A field of a config.

    Parameters
    ----------
    default, factory
        The value, or what makes it, when none is given; neither: the field is required.
    key
        False for what changes where, how fast or how loudly a run works, but not its result.
    input
        The text names a file, a directory or a model: its identity is part of the key, its spelling is not.
    help
        One line for ``--help``.
    """
    metadata = {"key": key and not input, "input": input, "help": help}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: str | None = setting(None, input=True, help="model directory or hub id")
    adapter: str | None = setting(None, input=True, help="adapter directory or hub id on top of it")
    revision: str | None = setting(None, help="hub revision of the model")
    device: str | None = setting(None, key=False, help="cpu, cuda, cuda:1 …; default: cuda when there is one")
    dtype: str = setting("auto", help="auto, float32, bfloat16 or float16")
    quantization: str | None = setting(None, help="int8 or nf4")
    trust_remote_code: bool = setting(False, key=False, help="run code that a hub model brings along")

    def __post_init__(self) -> None:
        check("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check("quantization", self.quantization, (None, "int8", "nf4"))
        pass_on(ModelOptions, self)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the result goes, and how the run behaves."""

    out: Path | None = setting(None, key=False, help="directory of the result")
    seed: int = setting(0, help="everything random is derived from it")
    threads: int | None = setting(None, key=False, help="CPU threads; default: as many as cores")
    force: bool = setting(False, key=False, help="replace a result that another command left at --out")
    dry_run: bool = setting(False, key=False, help="check settings and data, print the plan, change nothing")

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError("threads", self.threads, "a whole number above 0")
        pass_on(RunOptions, self)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a command would do: the answer to ``--dry-run``. None means that the number does not apply."""

    rows_kept: int | None = None
    rows_dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    minutes: float | None = None
    peak_memory_bytes: int | None = None
    reuses: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def check(field: str, value: object, accepted: tuple[object, ...]) -> None:
    """Raise ConfigError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ConfigError(field, value, [a for a in accepted if a is not None])


def pass_on(owner: type, config: object) -> None:
    """Run the checks of the next class in the chain: the last line of each ``__post_init__`` of a class to inherit."""
    following = getattr(super(owner, typing.cast(Any, config)), "__post_init__", None)
    if following is not None:
        following()


def required(config: object, *fields: str) -> None:
    """Raise ConfigError for the first of `fields` that is None or empty, e.g. ``required(config, "out")``."""
    for field in fields:
        value = getattr(config, field)
        if value is None or value == () or value == "":
            raise UserError("is required", f"--{field.replace('_', '-')}", _help(config, field))


def key_fields(config: object) -> dict[str, Any]:
    """The fields that decide the result, as plain data: without ``key=False`` and without inputs, recursively."""
    return _select(config, lambda metadata: metadata.get("key", True))


def input_fields(config: object, prefix: str = "") -> dict[str, Any]:
    """Fields that name files or models and are given, by dotted name, e.g. ``{"model": "base", "data": ("a.jsonl",)}``.

    What hangs below a ``key=False`` field does not count.
    """
    found: dict[str, Any] = {}
    for field in _fields(config) if _is_config(config) else ():
        value = getattr(config, field.name)
        if field.metadata.get("input"):
            if value is not None and value != ():
                found[prefix + field.name] = value
        elif field.metadata.get("key", True) and _is_config(value):
            found |= input_fields(value, f"{prefix}{field.name}.")
    return found


def to_yaml(config: object) -> str:
    """`config` as YAML that ``--config`` and `from_yaml` read back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def from_yaml(kind: type[Config], source: str | Path) -> Config:
    """The `kind` of config that the text, or the file when a Path, describes; unknown fields are errors."""
    text = source.read_text() if isinstance(source, Path) else source
    where = str(source) if isinstance(source, Path) else ""
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError("not valid YAML: " + " ".join(str(error).split()), where) from error
    if not isinstance(document, dict):
        raise UserError(f"expected a mapping of settings, found {type(document).__name__}", where)
    return _build(kind, document, where)


def _select(config: object, wanted: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return {str(k): _selected(v, wanted) for k, v in config.items()}
    if not _is_config(config):
        raise TypeError(f"a config is a dataclass or a mapping, not a {type(config).__name__}")
    fields = [f for f in _fields(config) if wanted(f.metadata)]
    return {f.name: _selected(getattr(config, f.name), wanted) for f in fields}


def _selected(value: object, wanted: Any) -> Any:
    return _select(value, wanted) if _is_config(value) else plain(value)


def _fields(config: object) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(typing.cast(Any, config))


def _is_config(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _help(config: object, name: str) -> str:
    return next(f.metadata.get("help", "") for f in _fields(config) if f.name == name)


def _build(kind: type[Config], values: dict, where: str) -> Config:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in _fields(kind)]
    for name in values:
        if name not in names:
            raise UserError(f"no setting is called {name!r}", where, f"known: {', '.join(names)}")
    return kind(**{name: _convert(hints[name], value, where) for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` from YAML as the annotation `hint` wants it: mappings become configs, lists tuples, text paths."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        fitting = [o for o in options if o is not type(None)]
        structured = [o for o in fitting if dataclasses.is_dataclass(o) == isinstance(value, dict)]
        return _convert((structured or fitting)[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _build(hint, value, where)
    if origin is tuple and isinstance(value, list):
        item = options[0] if len(options) == 2 and options[1] is ... else None
        items = [item or o for o in (options if item is None else options[:1] * len(value))]
        return tuple(_convert(h, v, where) for h, v in zip(items, value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value
