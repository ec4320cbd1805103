"""What a checkpoint or adapter directory is, read from its config and headers without loading weights.

Knows nothing about how it was made; that is the family tree's.
"""

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from maypole.core.errors import UnsupportedModel, UserError
from maypole.models.adapters import adapter_config
from maypole.models.attention import check_supported
from maypole.models.block_views import FAMILIES
from maypole.models.loading import read_config, weight_files

_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter directory's own facts; `base` is what its config names."""

    type: str
    base: str
    parameters: int
    dtype: str
    target_modules: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A checkpoint's facts. `context` in tokens; `packed` and `blocks` are "yes" or the reason why not."""

    family: str
    parameters: int
    layers: int
    width: int
    dtype: str
    vocabulary: int
    tokens: int
    context: int | None
    chat_template: bool
    packed: str
    blocks: str


def describe_model(path: Path, *, trust_remote_code: bool = False) -> ModelFacts:
    """Facts of the checkpoint in `path`; UserError where it is not whole."""
    config: Any = read_config(path, str(path), trust_remote_code)
    text = config.get_text_config()
    parameters, dtype = _count(weight_files(path))
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    family = str(config.model_type)
    views = "yes" if family in FAMILIES else f"no: there are views for {', '.join(FAMILIES)}"
    return ModelFacts(
        family=family,
        parameters=parameters,
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        dtype=dtype,
        vocabulary=int(text.vocab_size),
        tokens=len(tokenizer),
        context=getattr(text, "max_position_embeddings", None),
        chat_template=bool(getattr(tokenizer, "chat_template", None)),
        packed=_packed(config, trust_remote_code),
        blocks=views,
    )


def describe_adapter(path: Path) -> AdapterFacts:
    """Facts of the PEFT directory `path`."""
    fields = adapter_config(path)
    parameters, dtype = _count([path / "adapter_model.safetensors"])
    targets = fields.get("target_modules") or ()
    plain = {k: v for k, v in fields.items() if isinstance(v, int | float) and k != "inference_mode" and v is not False}
    return AdapterFacts(
        type=str(fields.get("peft_type", "lora")).lower(),
        base=str(fields.get("base_model_name_or_path") or ""),
        parameters=parameters,
        dtype=dtype,
        target_modules=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        settings=plain,
    )


def weight_bytes(path: Path) -> int:
    """Bytes of the weights in a checkpoint or adapter directory."""
    adapter = path / "adapter_model.safetensors"
    return sum(file.stat().st_size for file in ([adapter] if adapter.is_file() else weight_files(path)))


def _count(files: list[Path]) -> tuple[int, str]:
    """Numbers in `files`, and the type of most of them."""
    sizes: Counter[str] = Counter()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    piece = tensors.get_slice(key)
                    sizes[piece.get_dtype()] += prod(piece.get_shape())
        except SafetensorError as error:
            raise UserError(f"{file.name} cannot be read: {error}", str(file.parent), "a whole file") from error
    most = sizes.most_common(1)[0][0] if sizes else "F32"
    return sum(sizes.values()), _NAMES.get(most, most.lower())


def _packed(config: Any, trust: bool) -> str:
    try:
        with torch.device("meta"):
            check_supported(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
    except UnsupportedModel as error:
        return f"no: it lacks {error.lacks}"
    except ValueError:
        return "no: transformers has no causal language model of this family"
    return "yes"


def base_directory(path: Path) -> Path | None:
    """The directory of the base that the adapter in `path` names, None where it is not on this disk."""
    base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path") or ""
    for place in (Path(base), path / "base"):
        if base and (place / "config.json").is_file():
            return place
    return None
