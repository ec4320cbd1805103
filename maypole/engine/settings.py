"""How much an engine may hold and do at once; "auto" is decided from the device once. Knows no model."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maypole.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What an adapter may be called where clients name it: no part of a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Where adapters may come from, and how many may be at work.

    `roots` are folders whose directories are adapters of those names; with `hub` requests may also name hub ids. One of
    a rank above `max_rank` or of more than `max_bytes` is refused. Up to `max_active` adapters that need `max_bytes` in
    all, what they take stacked with others included, are on the device and take part in batches; on accelerators up to
    `host_bytes` of them wait in the host's memory. The others are read when a request names them. Where those asked for
    do not all fit, each has turns of `cycle_time` seconds. What an engine is given in memory counts for none of this.
    """

    roots: tuple[str | Path, ...] = ()
    hub: bool = False
    max_active: int = 64
    max_rank: int = 256
    max_bytes: int | str = "1GiB"
    host_bytes: int | str = "4GiB"
    cycle_time: float = 2.0

    def __post_init__(self) -> None:
        for name in ("max_active", "max_rank"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "a whole number above 0")
        if not self.cycle_time >= 0:
            raise ConfigError("cycle_time", self.cycle_time, "seconds, 0 or more")
        parse_bytes("max_bytes", self.max_bytes)
        parse_bytes("host_bytes", self.host_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Bounds of an engine.

    `max_seqs` sequences run at once; a forward takes up to `max_batch_tokens` tokens (longer prompts go in stretches);
    keys and values, those of prompts kept for later included, take up to `kv_bytes` (a number or text such as "1GiB"),
    stored as `kv_dtype`: by default fp32 on CPUs, whose attention is slow in half precision, and the model's own
    elsewhere. Weights are brought into a layout that multiplies faster: an engine that loaded its model moves them, one
    that was given a model copies up to `repack_bytes` of them; with 0 they stay as they are. `fast_path` computes
    Llama, Mistral, Qwen2 and Qwen3 in fewer operations than their own modules: "auto" does so on CPUs and NVIDIA's
    GPUs, True everywhere and is an error for other families, False nowhere.
    `deterministic` makes every number the same to the bit whatever else runs, at the price of sharing nothing and of
    forwards of a fixed size. `adapters` says which ones requests may name.
    """

    max_seqs: int | Literal["auto"] = "auto"
    max_batch_tokens: int | Literal["auto"] = "auto"
    kv_bytes: int | str = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    repack_bytes: int | str = "1GiB"
    fast_path: bool | Literal["auto"] = "auto"
    deterministic: bool = False
    adapters: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self) -> None:
        for name in ("max_seqs", "max_batch_tokens"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise ConfigError(name, value, '"auto" or a whole number above 0')
        if self.kv_bytes != "auto":
            parse_bytes("kv_bytes", self.kv_bytes)
        parse_bytes("repack_bytes", self.repack_bytes)
        if self.fast_path not in ("auto", True, False):
            raise ConfigError("fast_path", self.fast_path, ("auto", True, False))
        if self.kv_dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError("kv_dtype", self.kv_dtype, ("auto", "float32", "bfloat16", "float16"))

    def resolved(self, device: "torch.device") -> "Bounds":
        """The numbers behind every "auto" on `device`, of whose free memory keys and values get a part."""
        import torch

        cuda = device.type == "cuda"
        sequences = (256 if cuda else 64) if self.max_seqs == "auto" else self.max_seqs
        tokens = (8192 if cuda else 2048) if self.max_batch_tokens == "auto" else self.max_batch_tokens
        if self.kv_bytes != "auto":
            room = parse_bytes("kv_bytes", self.kv_bytes)
        elif cuda:
            room = torch.cuda.mem_get_info(device)[0] // 2
        else:
            room = min(2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 4)
        return Bounds(sequences, tokens, room, parse_bytes("repack_bytes", self.repack_bytes))


@dataclass(frozen=True, slots=True)
class Bounds:
    """`EngineConfig` in numbers."""

    max_seqs: int
    max_batch_tokens: int
    kv_bytes: int
    repack_bytes: int


def parse_bytes(field: str, value: int | str) -> int:
    """1073741824, "1GiB", "500 MB" -> bytes; ConfigError names `field` for the rest."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(field, value, 'bytes as a number, or text such as "1GiB"')
    return int(float(match[1]) * _UNITS[match[2].upper()])
