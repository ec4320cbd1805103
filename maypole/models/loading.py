"""Models from directories and hub ids, or from nothing, with errors that say what is missing. Knows nothing about rows.

Weights are read from safetensors only; code that travels with a checkpoint runs only when the caller asks for it.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from maypole.core.errors import ConfigError, UnsupportedCapability, UnsupportedModel, UserError
from maypole.core.identity import digest, identity
from maypole.core.seeds import derive
from maypole.models.adapters import adapter_config, load_adapter, own_randomness
from maypole.models.hub import is_hub_id, local
from maypole.models.language_model import LanguageModel
from maypole.models.quantized import Quantization, check_quantization, multiply_exactly, settings

log = logging.getLogger(__name__)

Task = Literal["causal", "score", "encode"]
_CLASSES: dict[str, str] = {
    "causal": "AutoModelForCausalLM",
    "score": "AutoModelForSequenceClassification",
    "encode": "AutoModel",
}
_NOUNS = {"causal": "a causal language model", "score": "a model with a score head", "encode": "an encoder"}
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


def load(
    model_name_or_path: str | Path,
    *,
    adapter: str | Path | None = None,
    task: Task = "causal",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    quantization: Quantization | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A checkpoint directory, an adapter directory or a hub id, in eval mode.

    dtype "auto" is the checkpoint's own; half precision runs as fp32 on CPUs without bf16 instructions, which is
    said once. Device None is cuda when there is one. With a quantization the base is rounded to it as it is read, and
    only adapters can learn. UserError says what is missing or broken and where.
    """
    if task not in _CLASSES:
        raise ConfigError("task", task, tuple(_CLASSES))
    where = _device(device)
    check_quantization(quantization, where)
    options = _Options(task, where, dtype, quantization, trust_remote_code)
    if adapter is not None and task == "score":
        options = replace(options, labels=_labels_of(local(adapter)))
    lm = _load(str(model_name_or_path), revision, options, alone=adapter is None)
    return lm if adapter is None else load_adapter(lm, adapter)


@dataclass(frozen=True, slots=True)
class _Options:
    """How a checkpoint is held; `labels`: scores of the head that an adapter brings along, None where none does."""

    task: Task
    device: torch.device
    dtype: str | torch.dtype
    quantization: Quantization | None
    trust: bool
    labels: int | None = None


def _load(name: str, revision: str | None, options: _Options, *, alone: bool = True) -> LanguageModel:
    path = local(name, revision=revision, code=options.trust)
    if (path / "adapter_config.json").is_file():
        if not alone:
            raise UserError("the model is an adapter directory and --adapter is given too", name, "one of the two")
        return _load_with_base(name, path, options)
    check_directory(path, name)
    config = read_config(path, name, options.trust)
    if options.labels is not None:
        config.num_labels = options.labels
    tokenizer = _tokenizer(path, name, options.trust)
    quantization = options.quantization
    stored, run = _dtypes(config, path, options.dtype, options.device)
    if quantization is None:
        model = _weights(path, name, config, run, options).to(options.device).eval()
    else:
        held = {"quantization_config": settings(quantization, run), "device_map": {"": options.device}}
        model = _weights(path, name, config, run, options, **held).eval()
        multiply_exactly(model)
    from_hub = is_hub_id(name)
    fingerprint = path.name if from_hub else identity(path)
    if quantization and fingerprint:
        fingerprint = digest(quantization, fingerprint)
    return LanguageModel(model, tokenizer, name if from_hub else str(path.resolve()), fingerprint, stored)


def _load_with_base(name: str, path: Path, options: _Options) -> LanguageModel:
    """The adapter in directory `path` on its own base: the one it names, or the one saved beside it as ``base/``."""
    fields = adapter_config(path)
    base = str(fields.get("base_model_name_or_path") or "")
    if base and Path(base).is_absolute() and not Path(base).is_dir() and (path / "base" / "config.json").is_file():
        base = str(path / "base")
    if not base or (is_hub_id(base) and (Path(base).is_absolute() or base.count("/") != 1)):
        raise UserError(f"its base model {base!r} is not there", name, f"--model BASE --adapter {name}")
    revision = fields.get("revision") if is_hub_id(base) else None
    if options.task == "score":
        options = replace(options, labels=_labels_of(path))
    lm = load_adapter(_load(base, revision, options), path)
    if _has_tokenizer(path):
        lm.tokenizer = _tokenizer(path, name, options.trust)
    lm.fingerprint = path.name if is_hub_id(name) else identity(path)
    if lm.quantization and lm.fingerprint:
        lm.fingerprint = digest(lm.quantization, lm.fingerprint)
    return lm


def _labels_of(adapter: Path) -> int | None:
    """How many scores the head has that an adapter brings along; None where it brings none."""
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if key.endswith("score.weight"):
                    return int(file.get_slice(key).get_shape()[0])
    except (SafetensorError, OSError):  # said when the adapter itself is read
        return None
    return None


def create(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LanguageModel:
    """A causal LM with fresh fp32 weights on the CPU that depend on `config` and `seed` only."""
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 0))
    if vocabulary < len(tokenizer):
        raise ConfigError("vocab_size", vocabulary, f"at least the tokenizer's {len(tokenizer)}")
    with own_randomness(derive(seed, "init")):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except ValueError as error:
            raise UnsupportedModel(config.model_type, f"{_NOUNS['causal']} in transformers") from error
    made = identity({"config": config.to_diff_dict(), "seed": seed})
    return LanguageModel(model.eval(), tokenizer, f"new {config.model_type}", f"created:{made}")


def create_from(
    directory: str | Path, seed: int, *, device: str | torch.device | None = None, dtype: str = "auto"
) -> LanguageModel:
    """A model from nothing, shaped by a directory that holds a config and a tokenizer but no weights.

    It is held in fp32 and saved in `dtype`, "auto" being fp32 too.
    """
    path, name = Path(directory), str(directory)
    if not (path / "config.json").is_file():
        raise UserError("config.json is missing", name, "a directory with a config and a tokenizer")
    lm = create(read_config(path, name, False), _tokenizer(path, name, False), seed)
    lm.name = str(path.resolve())
    lm.model.to(_device(device))
    if dtype != "auto":
        lm.dtype = getattr(torch, dtype)
    return lm


def has_weights(directory: Path) -> bool:
    """Whether a checkpoint directory holds weights of any kind, readable by us or not."""
    return any(directory.glob("*.safetensors*")) or any(directory.glob("pytorch_model*.bin*"))


def weight_files(path: Path, name: str = "") -> list[Path]:
    """The safetensors files of a checkpoint directory, every shard there; UserError names what is missing."""
    where = name or str(path)
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if not index.is_file():
        if not has_weights(path):
            hint = "a whole checkpoint; `train pretrain` makes weights from a config"
            raise UserError("it has no weights", where, hint)
        raise UserError("its weights are not in safetensors", where, "convert them; pickled weights are never read")
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index.name} cannot be read", where, "download it again") from error
    gone = [shard for shard in shards if not (path / shard).is_file()]
    if gone:
        what = f"{len(gone)} of {len(shards)} shards are missing: {', '.join(gone[:3])}"
        raise UserError(what, where, "download them again")
    return [path / shard for shard in shards]


def check_directory(path: Path, name: str = "") -> None:
    """UserError unless a directory is a whole checkpoint: config, tokenizer, every shard of its safetensors."""
    where = name or str(path)
    if not (path / "config.json").is_file():
        raise UserError("config.json is missing", where, "a directory written by save_pretrained")
    weight_files(path, where)
    if not _has_tokenizer(path):
        raise UserError("it has no tokenizer", where, f"copy its tokenizer there ({', '.join(_TOKENIZER_FILES)})")


def _has_tokenizer(path: Path) -> bool:
    return any((path / f).is_file() for f in _TOKENIZER_FILES)


def read_config(path: Path, name: str, trust: bool) -> PretrainedConfig:
    """The config in directory `path`; errors call it `name`. UnsupportedModel names a family that nobody knows."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust)
    except (ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            hint = "--trust-remote-code, if you trust its author"
            raise UserError("this model brings its own code", name, hint) from error
        family = _model_type(path)
        if not family:
            raise UserError(
                "config.json names no model_type", name, "a directory written by save_pretrained"
            ) from error
        hint = f"{name}: a model_type that transformers {transformers.__version__} knows"
        raise UnsupportedModel(family, "an architecture in this version of transformers", hint) from error
    except OSError as error:
        raise UserError("config.json cannot be read", name, "valid JSON; download it again") from error


def _model_type(path: Path) -> str:
    return str(json.loads((path / "config.json").read_text()).get("model_type", ""))


def _tokenizer(path: Path, name: str, trust: bool) -> PreTrainedTokenizerBase:
    if not _has_tokenizer(path):
        raise UserError("it has no tokenizer", name, f"copy its tokenizer there ({', '.join(_TOKENIZER_FILES)})")
    try:
        if _is_its_own_tokenizer(path):
            return PreTrainedTokenizerFast.from_pretrained(path)
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:  # tokenizers raises bare Exception
        if "trust_remote_code" in str(error):
            hint = "--trust-remote-code, if you trust its author"
            raise UserError("its tokenizer brings its own code", name, hint) from error
        hint = "the tokenizer files of the model it was made from"
        raise UserError(f"its tokenizer cannot be read: {str(error).splitlines()[0]}", name, hint) from error


def _is_its_own_tokenizer(path: Path) -> bool:
    """Whether tokenizer.json is all there is to it: AutoTokenizer would put Qwen's splitting and an unknown token, with
    an id beyond the vocabulary, on any tokenizer that lies beside a Qwen2 model."""
    file = path / "tokenizer_config.json"
    if not file.is_file() or not (path / "tokenizer.json").is_file():
        return False
    fields = json.loads(file.read_text())
    return fields.get("tokenizer_class") in _PLAIN_TOKENIZERS and "auto_map" not in fields


def _weights(path: Path, name: str, config: Any, dtype: torch.dtype, options: _Options, **held: Any) -> Any:
    if getattr(config, "quantization_config", None) is not None:
        hint = "the checkpoint that it was quantized from"
        raise UnsupportedCapability("its weights are stored quantized", name, hint)
    factory = getattr(transformers, _CLASSES[options.task])
    try:
        with quiet_transformers(), own_randomness(0):
            model, report = factory.from_pretrained(
                path, config=config, dtype=dtype, trust_remote_code=options.trust, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True, **held,
            )  # fmt: skip
    except ValueError as error:
        if "trust_remote_code" in str(error):
            hint = "--trust-remote-code, if you trust its author"
            raise UserError("this model brings its own code", name, hint) from error
        raise UnsupportedModel(config.model_type, f"{_NOUNS[options.task]} in transformers", name) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        what = f"its weights cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, name, "whole safetensors files; download them again") from error
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        key, found, wanted = wrong[0]
        what = f"{len(wrong)} of its weights have another shape than its config says: {key} is {tuple(found)}"
        raise UserError(what, name, f"{tuple(wanted)}, or the config.json that belongs to these weights")
    if options.task == "causal" and "score.weight" in report["unexpected_keys"]:
        raise UserError("it scores texts and predicts no tokens", name, f"a checkpoint that holds {_NOUNS['causal']}")
    brought = set() if options.labels is None else {"score.weight"}
    missing = sorted(set(report["missing_keys"]) - brought)
    if missing:
        what = f"{len(missing)} of its weights are missing, such as {missing[0]}"
        raise UserError(what, name, f"a checkpoint that holds {_NOUNS[options.task]} of the shape its config says")
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bar and no report of transformers on stderr: what is wrong with a checkpoint is said in one error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _device(wish: str | torch.device | None) -> torch.device:
    if wish is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(wish)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("device", str(wish), usable) from error
    if device.type == "meta":
        raise ConfigError("device", str(wish), usable)
    return device


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or ARM's bf16)."""
    return any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)


def _dtypes(config: Any, path: Path, wish: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """What the checkpoint is stored in, and what it runs in."""
    own = getattr(config, "dtype", None) or _first_dtype(path)
    stored = getattr(torch, own) if isinstance(own, str) else own
    if wish != "auto":
        asked = getattr(torch, wish, None) if isinstance(wish, str) else wish
        if not isinstance(asked, torch.dtype) or not asked.is_floating_point:
            raise ConfigError("dtype", str(wish), _DTYPES)
        return stored, asked
    half = stored in (torch.bfloat16, torch.float16)
    if half and device.type == "cpu" and not (stored == torch.bfloat16 and cpu_has_bf16()):
        _say_once(f"{str(stored).split('.')[1]} weights run as float32: this CPU has no instructions for them")
        return stored, torch.float32
    return stored, stored


@lru_cache
def _say_once(text: str) -> None:
    log.warning(text)


def _first_dtype(path: Path) -> torch.dtype:
    """The type of the first floating-point weight, for configs that do not tell."""
    try:
        with safe_open(weight_files(path)[0], framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                dtype = file.get_slice(key)[:0].dtype if file.get_slice(key).get_shape() else torch.int64
                if dtype.is_floating_point:
                    return dtype
    except SafetensorError as error:
        raise UserError(f"its weights cannot be read: {error}", str(path), "whole safetensors files") from error
    return torch.float32
