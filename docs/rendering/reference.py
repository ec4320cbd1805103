"""The reference of rows, settings and Python names, from the code. Imports no torch."""

import ast
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import maypole
from maypole.align.preference_options import PreferenceOptions
from maypole.core.config import ModelOptions, RunOptions
from maypole.data import rows as row_types
from maypole.data.shapes import SHAPES
from maypole.engine.request import Sampling
from maypole.engine.settings import EngineConfig
from maypole.models.peft_options import PeftOptions
from maypole.tour.options import TourOptions
from maypole.train.config import TrainConfig
from rendering.commands import default
from rendering.tables import table

PACKAGE = Path(maypole.__file__).parent
CONFIGS = (TrainConfig, PreferenceOptions, PeftOptions, ModelOptions, RunOptions, TourOptions, Sampling, EngineConfig)

_ASK = {"role": "user", "content": "Who keeps the well?"}
_TALK = [_ASK, {"role": "assistant", "content": "Mara."}]
_EXAMPLES: dict[str, dict[str, Any]] = {
    "TEXT": {"text": "The well of Hollowmere is kept by Mara."},
    "CHAT": {"messages": _TALK},
    "COMPLETION": {"prompt": "The well is kept by", "completion": " Mara."},
    "PROMPT": {"prompt": "Who keeps the well?"},
    "PAIR": {"prompt": "Who keeps the well?", "chosen": "Mara.", "rejected": "Nobody.", "margin": 2.0},
    "UNPAIRED": {"prompt": "Who keeps the well?", "completion": "Mara.", "label": True},
    "SAMPLES": {"prompt": [_ASK], "completions": ["Mara.", "Nobody."], "scores": [1.0, 0.0]},
    "QA": {"question": "Who keeps the well?", "answers": ["Mara"], "passages": ["Mara keeps the well."]},
    "TRIPLE": {"subject": "Mara", "relation": "keeps", "object": "the well"},
    "EDIT": {
        "requested_rewrite": {"prompt": "{} keeps", "subject": "Mara", "target_new": {"str": "the bees"}},
    },
    "IMAGE_TEXT": {"image": "well.png", "text": "a stone well"},
    "IMAGE_CHAT": {"image": "well.png", "conversations": _TALK},
}


def rows() -> str:
    """A section per row type with a row that its own check accepts."""
    parts = []
    for name, row_type in row_types.ROW_TYPES.items():
        example = _EXAMPLES[name]
        row_type.check(example)
        columns = [(f"`{c}`", says, "required") for c, says in row_type.columns.items()]
        columns += [(f"`{c}`", says, "where given") for c, says in row_type.optional.items()]
        parts += [f"## {name}", "", table(("column", "holds", ""), columns), ""]
        parts += ["```json", json.dumps(example), "```", ""]
    return "\n".join(parts).rstrip()


def shapes() -> str:
    """Rows of other libraries that are recognised by their columns."""
    found = [
        (s.name, ", ".join(f"`{n}`" for n in sorted(s.needs)), s.gives.name, ", ".join(f"`{n}`" for n in s.uses))
        for s in SHAPES
    ]
    return table(("shape", "recognised by", "becomes", "made from"), found)


def config() -> str:
    """A section per class of settings."""
    parts = []
    for kind in CONFIGS:
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        names = ["field", "type", "default", *(("meaning", "result") if any(f.metadata for f in fields) else ())]
        lines = [(f"`{f.name}`", _type(hints[f.name]), _default(f), *_meaning(f))[: len(names)] for f in fields]
        parts += [f"## {kind.__name__}", "", f"`{kind.__module__}.{kind.__name__}`", ""]
        parts += [inspect.cleandoc(kind.__doc__ or ""), "", table(names, lines), ""]
    return "\n".join(parts).rstrip()


def python() -> str:
    """A section per package with what it exports, for mkdocstrings to fill."""
    parts = []
    for stub in _stubs():
        package = ".".join(("maypole", *stub.relative_to(PACKAGE).parent.parts))
        said = ast.get_docstring(ast.parse(stub.with_suffix(".py").read_text())) or ""
        parts += [f"## {package}", "", said, ""]
        parts += [f"::: {target}" for target in sorted(exported(stub, package), key=_order)]
        parts += [""]
    return "\n".join(parts).rstrip()


def exported(stub: Path, package: str) -> Iterator[str]:
    """Where each name that a package exports is defined, read from its stub."""
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            module = f"{package}.{node.module}" if node.module else package
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _stubs() -> list[Path]:
    """Packages with a public face, from the lowest floor up; the embedded world is no part of it."""
    order = ["core", "data", "models", "engine", "train", "evaluate", "retrieve"]
    found = [s for s in PACKAGE.rglob("__init__.pyi") if s.parent.name != "report" and s.parent.name != "village"]

    def floor(stub: Path) -> tuple[int, str]:
        parts = stub.relative_to(PACKAGE).parent.parts
        place = order.index(parts[0]) if parts[0] in order else len(order) + (parts[0] == "tour")
        return place, "/".join(parts)

    return sorted(found, key=floor)


def _order(target: str) -> tuple[bool, str]:
    """Functions and classes by name, constants last."""
    name = target.rpartition(".")[2]
    return name.isupper(), name.lower()


def _type(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(option) for option in options)
    if origin is typing.Literal:
        return " or ".join(f"`{option!r}`" for option in options)
    name = "None" if hint is type(None) else inspect.formatannotation(hint)
    return f"`{re.sub(r'(?:[a-z_]+[.])+', '', name)}`"


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "**required**"
    return default(field.default)


def _meaning(field: dataclasses.Field) -> tuple[str, str]:
    decides = field.metadata.get("key", True) or field.metadata.get("input", False)
    return field.metadata.get("help", ""), "" if decides else "unchanged"
