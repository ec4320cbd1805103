"""The record of a result: what made it, from what, with which numbers. Knows nothing about how results come to be.

A manifest is plain JSON. It names no user, no host, and no absolute path but those that the user typed.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import sys
from pathlib import Path
from typing import Any

from maypole.core.atomic import files_below, is_temporary, write_atomic
from maypole.core.config import input_fields, key_fields
from maypole.core.errors import ArtifactError, ConfigError
from maypole.core.identity import digest, hasher, identity, is_path, plain
from maypole.core.lock import NAME as LOCK

FILE = "manifest.json"
CHECKPOINTS = "checkpoints"
RECORDS = frozenset({FILE, LOCK, "run.log", "metrics.jsonl", "tensorboard"})
"""Files and folders that tell about a run rather than being its result: they hold times, so `files` leaves them out."""

_VERSIONS = ("maypole", "torch", "transformers", "tokenizers", "datasets", "peft", "accelerate", "numpy")
_NEAR = 2


def describe(out: Path, kind: str, config: object, inputs: dict[str, object], seed: int) -> dict[str, Any]:
    """The manifest of a result about to be made at `out`; its key is random where an input has no identity."""
    settings = {} if config is None else config
    named = {**input_fields(settings), **inputs}
    identities = {name: identity(value) for name, value in sorted(named.items())}
    try:
        decisive = key_fields(settings)
        shown = plain(settings)
    except TypeError as error:
        raise ConfigError("config", type(config).__name__, f"plain data ({error})") from error
    reusable = all(value is not None for value in identities.values())
    material = json.dumps([kind, _numbers(decisive), identities, seed], sort_keys=True)
    return {
        "kind": kind,
        "state": "running",
        "key": digest("artifact", material) if reusable else secrets.token_hex(16),
        "reusable": reusable,
        "config": shown,
        "decisive": decisive,
        "inputs": {name: _input(value, identities[name], out) for name, value in sorted(named.items())},
        "versions": versions(),
        "seed": seed,
        "command": ["maypole" if i == 0 else word for i, word in enumerate(sys.argv)] if sys.argv else [],
        "wall_seconds": 0.0,
        "cpu_seconds": 0.0,
        "peak_rss_bytes": 0,
        "metrics": {},
        "children": {},
        "files": [],
    }


def differences(old: dict, new: dict) -> list[str]:
    """What makes two manifests' keys differ, one line each: ``learning_rate: 0.1 then, 0.2 now``."""
    found = [f"{n}: {old.get(n)} then, {new.get(n)} now" for n in ("kind", "seed") if old.get(n) != new.get(n)]
    before, after = _flat(old.get("decisive", {})), _flat(new.get("decisive", {}))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name, "absent") != after.get(name, "absent"):
            found.append(f"{name}: {before.get(name, 'absent')!r} then, {after.get(name, 'absent')!r} now")
    before, after = old.get("inputs", {}), new.get("inputs", {})
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, {}), after.get(name, {})
        if was.get("identity") is None or now.get("identity") is None:
            found.append(f"input {name}: cannot be compared (it carries no identity)")
        elif was["identity"] != now["identity"]:
            names = f"{was.get('path', 'another')} then, {now.get('path', 'another')} now"
            found.append(f"input {name}: {'its content' if was.get('path') == now.get('path') else names}")
    return list(dict.fromkeys(found)) or ["the manifest was edited or comes from another version"]


def read(directory: Path) -> dict[str, Any] | None:
    """The manifest in `directory`; None where there is none; ArtifactError where it cannot be read."""
    path = directory / FILE
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ArtifactError("is not valid JSON", str(path), "a directory that maypole wrote") from error
    if not isinstance(document, dict) or not {"kind", "key", "state"} <= document.keys():
        raise ArtifactError("is not a maypole manifest", str(path), "a directory that maypole wrote")
    return document


def write(directory: Path, manifest: dict) -> None:
    """Write `manifest` into `directory`, whole or not at all."""
    write_atomic(directory / FILE, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def list_files(root: Path, children: dict[str, str]) -> list[dict[str, Any]]:
    """Path, size and blake2b of every result file below `root`; a child's files stand in its own manifest."""
    listed = []
    for file in files_below(root):
        relative = file.relative_to(root)
        if any(relative.is_relative_to(name) for name in children) or relative.parts[0] == CHECKPOINTS:
            continue
        if relative.parts[0] in RECORDS or is_temporary(file):
            continue
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, hasher).hexdigest()
        listed.append({"path": relative.as_posix(), "size": file.stat().st_size, "blake2b": content})
    return listed


def has_work(directory: Path) -> bool:
    """Whether an unfinished run left anything in `directory` besides the notes of how it began."""
    begun = {FILE, LOCK, "run.log", "config.yaml", "plan.json"}
    files = (file.relative_to(directory) for file in files_below(directory) if not is_temporary(file))
    return any(file.as_posix() not in begun for file in files)


def _numbers(value: Any) -> Any:
    """1.0 and 1 are one setting."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: _numbers(item)}
    return flat


def versions() -> dict[str, str]:
    """Versions of python, maypole and the libraries whose numbers a result depends on; imports none of them."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _input(value: object, found: str | None, out: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if isinstance(value, list | tuple) and value and all(isinstance(v, str | Path) for v in value):
        entry["paths"] = [_place(str(v), out) for v in value]
        entry["path"] = ", ".join(entry["paths"])
    else:
        named = value if isinstance(value, str | Path) else getattr(value, "path", getattr(value, "name", None))
        if isinstance(named, str | Path):
            entry["path"] = _place(str(named), out)
    return {**entry, "identity": found}


def _place(text: str, out: Path) -> str:
    """An input's path as seen from `out` when both lie near each other, else its last part; other text as it is."""
    if not is_path(text):
        return os.path.basename(text) if os.path.isabs(text) else text
    path, base = os.path.abspath(text), os.path.abspath(out)
    common = Path(os.path.commonpath([path, base]))
    relative = os.path.relpath(path, base)
    hides_user = common != Path.home() and Path.home().is_relative_to(common)
    cwd = Path.cwd()
    both_here = Path(path).is_relative_to(cwd) and Path(base).is_relative_to(cwd)
    near = both_here or (relative.split(os.sep).count("..") <= _NEAR and not hides_user)
    return relative if near else os.path.basename(path)
