"""What an input *is*, as a short hash: the part of a result's key that says which data and which model went in.

Paths stand for their content, live objects for the fingerprint they carry. An object that carries none (a lambda) has
no identity, and a result made from it is never continued or reused. Knows nothing about torch or any file format.
"""

import dataclasses
import enum
import hashlib
import inspect
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maypole.core.atomic import files_below, is_temporary, write_atomic

WHOLE_FILE_LIMIT = 64 << 20
"""Bytes up to which a file is its content; above, its size, its time and its first and last MB."""

_END = 1 << 20
_REMEMBER_FROM = 1 << 20  # below this, reading the file is as quick as looking its hash up
_CHECKPOINT_JSON = ("vocab.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json")
_CHECKPOINT_OTHER = ("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja")

_log = logging.getLogger(__name__)


def cache_dir(*parts: str) -> Path:
    """A directory below ``$MAYPOLE_CACHE`` (default ``~/.cache/maypole``), made when missing; safe to delete."""
    root = os.environ.get("MAYPOLE_CACHE")
    path = (Path(root) if root else Path.home() / ".cache" / "maypole").joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(*parts: str | bytes) -> str:
    """32 hex characters for the sequence `parts`; where one ends and the next begins matters."""
    state = hasher()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def identity(obj: object) -> str | None:
    """What `obj` is, in 32 hex characters or the fingerprint it carries; None when that cannot be known.

    * a path, as `Path` or as text that names an existing one: the artifact's key, the checkpoint's or file's content;
    * ``"file.py:function"``: the file's content and the function's name; other text: itself (a hub id, a URL);
    * an object with a text attribute `fingerprint` (LanguageModel) or `_fingerprint` (datasets.Dataset): that one;
    * a dataclass: its type and its fields; lists, tuples, sets and mappings: their items; plain values: themselves;
    * a module-level function or class: its source file and its name.
    """
    return _identity(obj, paths=True)


def is_path(text: str) -> bool:
    """Whether `text` names an existing file or directory."""
    try:
        return bool(text) and os.path.exists(text)
    except ValueError:  # an embedded null byte names nothing
        return False


def _identity(obj: object, *, paths: bool) -> str | None:
    if isinstance(obj, Path):
        return _path(obj)
    if isinstance(obj, str):
        return _text(obj, paths)
    if isinstance(obj, enum.Enum):
        return digest("enum", type(obj).__qualname__, obj.name)
    if obj is None or isinstance(obj, bool | int | float | bytes):
        return digest(type(obj).__name__, repr(obj))
    for name in ("fingerprint", "_fingerprint"):
        carried = getattr(obj, name, None)
        if isinstance(carried, str) and carried:
            return carried
    key = getattr(obj, "key", None)
    if isinstance(getattr(obj, "manifest", None), dict) and isinstance(key, str):
        return key
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = [(f.name, getattr(obj, f.name)) for f in dataclasses.fields(obj)]
        return _named(f"{type(obj).__module__}.{type(obj).__qualname__}", fields, paths=False)
    if isinstance(obj, Mapping):
        return _named("mapping", sorted((str(k), v) for k, v in obj.items()), paths=paths)
    if isinstance(obj, list | tuple):
        return _many("sequence", [_identity(o, paths=paths) for o in obj])
    if isinstance(obj, set | frozenset):
        items = [_identity(o, paths=paths) for o in obj]
        return None if None in items else _many("set", sorted(i for i in items if i is not None))
    return _source(obj)


def _named(kind: str, items: Iterable[tuple[str, object]], *, paths: bool) -> str | None:
    return _many(kind, [part for name, value in items for part in (name, _identity(value, paths=paths))])


def _many(kind: str, parts: Sequence[str | None]) -> str | None:
    known = [part for part in parts if part is not None]
    return digest(kind, *known) if len(known) == len(parts) else None


def _text(text: str, paths: bool) -> str | None:
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py") and function.isidentifier() and os.path.isfile(file):
        return digest("function", function, _file(Path(file)))
    if paths and is_path(text):
        return _path(Path(text))
    return digest("str", text)


def _source(obj: object) -> str | None:
    """The identity of a function or class that can be found again by its name; nothing else has one."""
    name = getattr(obj, "__qualname__", None)
    if not isinstance(obj, type) and not inspect.isfunction(obj):
        return None
    if name is None or "<" in name or getattr(obj, "__closure__", None):
        return None
    try:
        file = inspect.getsourcefile(obj)
    except (TypeError, OSError):
        return None
    return digest("function", name, _file(Path(file))) if file and os.path.isfile(file) else None


def _path(path: Path) -> str | None:
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return digest("str", str(path))
    manifest = path / "manifest.json"
    if manifest.is_file():
        try:
            document = json.loads(manifest.read_bytes())
        except ValueError:
            document = {}
        if isinstance(document, dict) and isinstance(document.get("key"), str):
            return document["key"] if document.get("state") == "finished" else None
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return _checkpoint(path)
    parts: list[str | None] = []
    for file in files_below(path):
        if not is_temporary(file):
            parts += [file.relative_to(path).as_posix(), _file(file)]
    return _many("directory", parts)


def _checkpoint(path: Path) -> str | None:
    """Config, tokenizer and weights of a model or adapter directory; an adapter's local base counts by its content."""
    parts: list[str | None] = []
    for file in sorted(path.iterdir()):
        name = file.name
        if name == "adapter_config.json":
            config = json.loads(file.read_bytes())
            base = config.pop("base_model_name_or_path", None)
            parts += [name, digest(json.dumps(config, sort_keys=True)), _identity(base, paths=True)]
        elif file.suffix == ".safetensors" or name in _CHECKPOINT_OTHER or _is_config(name):
            parts += [name, _content(file)]
    return _many("checkpoint", parts)


def _is_config(name: str) -> bool:
    return name in _CHECKPOINT_JSON or (name.endswith(".json") and "config" in name)


def _file(path: Path) -> str:
    stat = path.stat()
    if stat.st_size <= WHOLE_FILE_LIMIT:
        return _content(path)
    with path.open("rb") as file:
        first = file.read(_END)
        file.seek(-_END, os.SEEK_END)
        return digest("large file", str(stat.st_size), str(stat.st_mtime_ns), first, file.read(_END))


def _content(path: Path) -> str:
    """Hash of a whole file, remembered by (path, size, time, inode) so that a large one is read once."""
    stat = path.stat()
    if stat.st_size < _REMEMBER_FROM:
        return _hash(path)
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    try:
        note = cache_dir("identity") / f"{digest(str(path.resolve()))}.json"
        if note.is_file():
            remembered = json.loads(note.read_bytes())
            if remembered.get("stamp") == stamp:
                return remembered["content"]
    except (OSError, ValueError, KeyError) as error:
        _log.debug("no remembered hash for %s: %s", path.name, error)
        note = None
    content = _hash(path)
    # A file written within the last second may change again without its time showing it.
    if note is not None and time.time_ns() - stat.st_mtime_ns > 1_000_000_000:
        try:
            write_atomic(note, json.dumps({"stamp": stamp, "content": content}))
        except OSError as error:
            _log.debug("hash of %s not remembered: %s", path.name, error)
    return content


def hasher() -> Any:
    """A fresh blake2b of 32 hex characters, the project's one hash."""
    return hashlib.blake2b(digest_size=16)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


def plain(value: object) -> object:
    """`value` as JSON would hold it: dataclasses become mappings, paths text, tuples lists; TypeError for the rest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} is not plain data")
