"""Adapters as directories that anybody may have written: read whole or refused, with a reason that names the file.

Only safetensors are read, and no more than was agreed on. The header is checked against the base before any weight is
read, and the weights are hashed as they are read, so that what was checked is what is used. Knows nothing about when.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes

from maypole.core.errors import ConfigError, UserError
from maypole.core.identity import identity
from maypole.engine.adapters import Adapter, check_config, check_layers, from_tensors, kind_of, modules_of
from maypole.engine.settings import AdapterConfig, parse_bytes
from maypole.models.adapters import config_class

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_BYTES = 2**20
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that weights may have, and bytes of a number."""
STACKED = 4
"""Bytes that a number of an adapter takes besides, where it is stacked with those of other adapters (`lanes`)."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Base:
    """What adapters are for: the engine's module, and the name of its weights."""

    module: Any
    name: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The highest rank and the most bytes of one adapter."""

    max_rank: int
    max_bytes: int

    @classmethod
    def of(cls, config: AdapterConfig) -> "Limits":
        return cls(config.max_rank, parse_bytes("max_bytes", config.max_bytes))


@dataclass(frozen=True, slots=True)
class Found:
    """A directory that holds an adapter for the base, as its config and header say.

    `bytes` are those of its tensors, `cost` what it needs while it takes part in batches.
    """

    directory: Path
    config: Any
    rank: int
    bytes: int
    cost: int


def inside(directory: Path, roots: Sequence[Path], where: str) -> Path:
    """`directory` with all links followed; UserError unless it and the files in it lie in one of `roots`."""
    try:
        real = directory.resolve(strict=True)
        every = [real, (real / CONFIG).resolve(), (real / WEIGHTS).resolve()]
    except (OSError, RuntimeError, ValueError) as error:  # nothing there, a circle of links, a NUL
        raise UserError("there is no such adapter", where, f"a directory with {CONFIG}") from error
    if not any(all(file.is_relative_to(root.resolve()) for file in every) for root in roots):
        raise UserError("the adapter lies outside the folders that adapters may come from", where, "one inside them")
    return real


def stamp(directory: Path) -> Hashable:
    """Equal as long as nobody has written the adapter's files again; None where one is missing."""
    try:
        seen = [os.stat(directory / name) for name in (CONFIG, WEIGHTS)]
    except (OSError, ValueError):
        return None
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in seen)


def inspect(directory: Path, base: Base, limits: Limits, where: str) -> Found:
    """What the header and the config say; UserError where that is not an adapter of `base` inside `limits`."""
    config = _config(directory, where)
    check_config(config, where)
    _check_base(config, base, where)
    file = _regular(directory, WEIGHTS, limits.max_bytes, where)
    shapes: dict[str, tuple[int, ...]] = {}
    numbers, size = 0, 0
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                part = tensors.get_slice(name)
                if part.get_dtype() not in SIZES:
                    raise UserError(f"{name!r} is of type {part.get_dtype()}", where, f"one of {', '.join(SIZES)}")
                shapes[name] = tuple(part.get_shape())
                numbers += math.prod(shapes[name])
                size += math.prod(shapes[name]) * SIZES[part.get_dtype()]
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{WEIGHTS} is damaged: {_line(error)}", where, "a whole file; copy it again") from error
    if not shapes:
        raise UserError(f"{WEIGHTS} is empty", where, "the weights of an adapter")
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (module, part) in modules_of(shapes, base.module, where).items():
        if part not in ("weight", "bias"):
            layers.setdefault(module, {})[part] = shapes[name]
    check_layers(layers, config, base.module, where)
    ranks = [parts["lora_A.weight"][0] for parts in layers.values() if kind_of(config) == "lora"]
    rank = max(ranks, default=0)
    if rank > limits.max_rank:
        raise UserError(f"the adapter has rank {rank}", where, f"at most {limits.max_rank} (max_rank)")
    return Found(directory, config, rank, size, size + (numbers * STACKED if rank else 0))


def load(found: Found, name: str, base: Base, limits: Limits, where: str, device: torch.device) -> Adapter:
    """The adapter of an inspected directory, its weights checked again as they were read; its key is their hash."""
    file = _regular(found.directory, WEIGHTS, limits.max_bytes, where)
    with file.open("rb") as open_:
        data = open_.read(limits.max_bytes + 1)
    try:
        tensors = load_bytes(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{WEIGHTS} is damaged: {_line(error)}", where, "a whole file; copy it again") from error
    if sum(t.nbytes for t in tensors.values()) > found.bytes:
        raise UserError(f"{WEIGHTS} grew while it was read", where, "another try")
    hashed = hashlib.sha256((found.directory / CONFIG).read_bytes())
    hashed.update(data)
    return from_tensors(name, found.config, tensors, base.module, where, key=hashed.hexdigest(), device=device)


def from_directory(path: str | Path, name: str, base: Base, limits: Limits) -> Adapter:
    """The adapter of a directory that the caller chose, wherever it lies."""
    directory, where = Path(path), f"adapter {str(path)!r}"
    device = next(base.module.parameters()).device
    return load(inspect(directory, base, limits, where), name, base, limits, where, device)


def _config(directory: Path, where: str) -> Any:
    file = _regular(directory, CONFIG, CONFIG_BYTES, where)
    try:
        fields = json.loads(file.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError("it holds no mapping")
        made: Any = config_class(str(fields.get("peft_type") or "lora"))
        config = made.from_pretrained(str(directory))
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{CONFIG} cannot be used: {_line(error)}", where, "a directory written by peft") from error
    if getattr(config, "is_prompt_learning", False):
        raise UserError(f"an adapter of type {kind_of(config)!r} changes prompts", where, "one that changes layers")
    return config


def _regular(directory: Path, name: str, most: int, where: str) -> Path:
    file = directory / name
    try:
        seen = file.stat()
    except OSError as error:
        pickled = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern)) if name == WEIGHTS else []
        if pickled:
            hint = "safetensors only, a pickle may run anything: save it again with safe_serialization=True"
            raise UserError(f"{pickled[0]} is a pickle and is not read", where, hint) from error
        raise UserError(f"{name} is missing", where, "a directory written by peft") from error
    if not stat.S_ISREG(seen.st_mode):
        raise UserError(f"{name} is no file", where, "a directory written by peft")
    if seen.st_size > most:
        raise UserError(f"{name} has {seen.st_size:,} bytes", where, f"at most {most:,}")
    return file


def _check_base(config: Any, base: Base, where: str) -> None:
    """An adapter fits the base that it was trained on; where both say which that is, it has to be the same.

    Names of different kinds (a hub id, a directory) may mean the same model, and shapes alone decide.
    """
    stated = str(config.base_model_name_or_path or "")
    if not stated or stated == base.name:
        return
    theirs, ours = Path(stated), Path(base.name)
    if theirs.is_dir() and ours.is_dir():
        same = theirs.samefile(ours) or identity(theirs) == identity(ours)
    else:
        both_of_hub = all(_HUB_ID.fullmatch(n) and not Path(n).exists() for n in (stated, base.name))
        same = not both_of_hub
    if not same:
        what = f"the adapter is one of {stated!r}, and the base is {base.name!r}"
        raise UserError(what, where, f"an adapter of this base, or its name in {CONFIG} where the weights are the same")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
