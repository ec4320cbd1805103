"""Where a model comes from: the manifests of maypole's results, followed from each to what it was made of.

Reads JSON only. Knows nothing about weights.
"""

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maypole.core import manifest as manifests
from maypole.core.errors import ArtifactError
from maypole.core.identity import digest, identity

_NUMBERS = 8
"""How many of a result's numbers a step shows."""


@dataclass(frozen=True, slots=True)
class Step:
    """One ancestor. `made_from` names others in the list; `note` says where the trail ends or no longer fits."""

    name: str
    kind: str
    made_from: tuple[str, ...] = ()
    changed: str = ""
    numbers: dict[str, float] | None = None
    command: str = ""
    note: str = ""


def family_tree(directory: str | Path) -> tuple[Step, ...]:
    """The ancestors of the result or checkpoint in `directory`, oldest first, itself last; each is named once."""
    found: dict[str, Step] = {}
    _visit(Path(os.path.abspath(directory)), "", found)
    return tuple(found.values())


def _visit(path: Path, note: str, found: dict[str, Step]) -> str:
    """Add `path` after its ancestors; returns its name."""
    name = _shown(path)
    if name in found:
        return name
    if path.is_file():
        found[name] = Step(name, "file", note=note)
        return name
    try:
        document = manifests.read(path)
    except ArtifactError as error:
        found[name] = Step(name, "unknown", note=_joined(note, error.what))
        return name
    found[name] = Step(name, "")  # holds the place: a manifest that names itself must not go round in circles
    parents: list[str] = []
    if document is None:
        base = _base_of_adapter(path)
        if base:
            parents.append(_visit(Path(base), "", found) if Path(base).is_dir() else _elsewhere(base, None, found))
    else:
        for role, entry in document.get("inputs", {}).items():
            parents += _parents(path, role, entry, found)
    del found[name]
    found[name] = _step(path, name, document, tuple(dict.fromkeys(parents)), note)
    return name


def _step(path: Path, name: str, document: dict[str, Any] | None, parents: tuple[str, ...], note: str) -> Step:
    if document is None:
        return Step(name, _plain_kind(path), parents, _structure(path), note=note)
    metrics = document.get("metrics", {})
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    unfinished = "" if document["state"] == "finished" else f"its run is {document['state']}"
    words = document.get("command") or []
    return Step(
        name=name,
        kind=str(document["kind"]),
        made_from=parents,
        changed=_structure(path),
        numbers=dict(list(numbers.items())[:_NUMBERS]),
        command=shlex.join(words) if len(words) > 1 else "",
        note=_joined(note, unfinished),
    )


def _parents(child: Path, role: str, entry: dict[str, Any], found: dict[str, Step]) -> list[str]:
    """Names of the ancestors behind one input of a manifest; none for live objects, which have no place."""
    texts = entry.get("paths") or ([entry["path"]] if "path" in entry else [])
    places = [_place(child, role, text) for text in texts]
    if None in places:
        return [
            _elsewhere(text, entry.get("identity"), found) if place is None else _visit(place, "", found)
            for text, place in zip(texts, places)
        ]
    here = [str(place) for place in places]
    now = identity(here if "paths" in entry else here[0]) if here else None
    moved_on = bool(here) and entry.get("identity") is not None and now != entry["identity"]
    note = "its content has changed since" if moved_on else ""
    return [_visit(Path(place), note, found) for place in here]


def _place(child: Path, role: str, text: str) -> Path | None:
    """Where an input lies now: as seen from its child, from here, or, for a base model, where the adapter says."""
    places = [child / text]
    if role == "model":
        places += [Path(base)] if (base := _base_of_adapter(child)) else []
    for place in places:
        if place.exists():
            return Path(os.path.normpath(place))
    return None


def _elsewhere(text: str, recorded: str | None, found: dict[str, Step]) -> str:
    """An ancestor that is no path here: a hub id, a model made from nothing, or a directory that is gone."""
    by_name = recorded == digest("str", text) or re.fullmatch("[0-9a-f]{40}", recorded or "") is not None
    if recorded is None:  # an adapter's base, of which only the name is known
        by_name = not os.path.isabs(text) and text.count("/") == 1
    if recorded is not None and recorded.startswith("created:"):
        step = Step(text, "created from nothing")
    elif by_name:
        step = Step(text, "named, not stored here")
    else:
        step = Step(text, "gone", note="no longer where it was; its own ancestors are unknown")
    found.setdefault(text, step)
    return text


def _base_of_adapter(path: Path) -> str:
    return str(_json(path / "adapter_config.json").get("base_model_name_or_path") or "")


def _plain_kind(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "adapter"
    return "checkpoint" if (path / "config.json").is_file() else "directory"


def _structure(path: Path) -> str:
    """What a step put on its base: an adapter's type and size, or whole weights."""
    fields = _json(path / "adapter_config.json")
    if not fields:
        return "all weights" if (path / "config.json").is_file() else ""
    targets = fields.get("target_modules") or ()
    on = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    rank = f" of rank {fields['r']}" if "r" in fields else ""
    return f"{str(fields.get('peft_type', 'lora')).lower()} adapter{rank} on {on or 'no layer'}"


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _shown(path: Path) -> str:
    """Relative where it lies below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
