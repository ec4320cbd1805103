"""Models from directories and hub ids, or from nothing, with errors that say what is missing. Knows nothing about rows.

Weights are read from safetensors only; code that travels with a checkpoint runs only when the caller asks for it.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from maypole.core.errors import ConfigError, UnsupportedCapability, UnsupportedModel, UserError
from maypole.core.identity import identity
from maypole.core.seeds import derive
from maypole.models.adapters import adapter_config, load_adapter
from maypole.models.language_model import LanguageModel

log = logging.getLogger(__name__)

Task = Literal["causal", "score", "encode"]
_CLASSES: dict[str, str] = {
    "causal": "AutoModelForCausalLM",
    "score": "AutoModelForSequenceClassification",
    "encode": "AutoModel",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


def load(
    model_name_or_path: str | Path,
    *,
    adapter: str | Path | None = None,
    task: Task = "causal",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    quantization: Literal["int8", "nf4"] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A checkpoint directory, an adapter directory or a hub id, in eval mode.

    dtype "auto" is the checkpoint's own; half precision runs as fp32 on CPUs without bf16 instructions, which is
    said once. Device None is cuda when there is one. UserError says what is missing or broken and where.
    """
    if quantization is not None:
        raise UnsupportedCapability(f"quantization {quantization!r} is not available", "--quantization")
    name, path = str(model_name_or_path), Path(model_name_or_path)
    if path.exists() and not path.is_dir():
        raise UserError("this is a file", name, "a checkpoint directory or a hub id")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise UserError("no such directory", name, "a checkpoint directory, or a hub id such as owner/name")
    if (path / "adapter_config.json").is_file():
        if adapter is not None:
            raise UserError("the model is an adapter directory and --adapter is given too", name, "one of the two")
        base = str(adapter_config(path).get("base_model_name_or_path") or "")
        options: dict[str, Any] = {"task": task, "device": device, "dtype": dtype, "revision": revision}
        if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
            raise UserError(f"its base model {base!r} is not there", name, "--model BASE --adapter " + name)
        lm = load_adapter(load(base, **options, trust_remote_code=trust_remote_code), path)
        tokenizer = _tokenizer(name, path, revision, trust_remote_code) if _has_tokenizer(path) else lm.tokenizer
        lm.tokenizer = tokenizer
        return lm
    where = _device(device)
    if path.is_dir():
        check_directory(path)
    config = _config(name, revision, trust_remote_code)
    tokenizer = _tokenizer(name, path, revision, trust_remote_code)
    stored, run = _dtypes(config, dtype, where)
    model = _weights(name, task, config, run, revision, trust_remote_code).to(where).eval()
    fingerprint = identity(path) if path.is_dir() else getattr(config, "_commit_hash", None)
    lm = LanguageModel(model, tokenizer, str(path.resolve()) if path.is_dir() else name, fingerprint, stored)
    return lm if adapter is None else load_adapter(lm, adapter)


def create(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LanguageModel:
    """A causal LM with fresh fp32 weights on the CPU that depend on `config` and `seed` only."""
    vocabulary = int(getattr(config, "vocab_size", 0))
    if vocabulary < len(tokenizer):
        raise ConfigError("vocab_size", vocabulary, f"at least the tokenizer's {len(tokenizer)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except ValueError as error:
            raise UnsupportedModel(config.model_type, "a causal language model in transformers") from error
    made = identity({"config": config.to_diff_dict(), "seed": seed})
    return LanguageModel(model.eval(), tokenizer, f"new {config.model_type}", f"created:{made}")


def create_from(directory: str | Path, seed: int) -> LanguageModel:
    """A model from nothing, shaped by a directory that holds a config and a tokenizer but no weights."""
    path = Path(directory)
    tokenizer = _tokenizer(str(path), path, None, False)
    lm = create(_config(str(path), None, False), tokenizer, seed)
    lm.name = str(path.resolve())
    return lm


def has_weights(directory: Path) -> bool:
    """Whether a checkpoint directory holds weights of any kind, readable by us or not."""
    return any(directory.glob("*.safetensors*")) or any(directory.glob("pytorch_model*.bin*"))


def check_directory(path: Path) -> None:
    """UserError unless a directory is a whole checkpoint: config, tokenizer, every shard of its safetensors."""
    if not (path / "config.json").is_file():
        raise UserError("config.json is missing", str(path), "a directory written by save_pretrained")
    if not has_weights(path):
        raise UserError(
            "it has no weights", str(path), "a whole checkpoint; `train pretrain` makes weights from a config"
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError("not a readable index of shards", str(index), "download it again") from error
        gone = [s for s in shards if not (path / s).is_file()]
        if gone:
            raise UserError(
                f"{len(gone)} of {len(shards)} shards are missing: {', '.join(gone[:3])}",
                str(path),
                "download them again",
            )
    elif not (path / "model.safetensors").is_file():
        raise UserError("its weights are not in safetensors", str(path), "convert them; pickled weights are never read")
    if not _has_tokenizer(path):
        raise UserError("it has no tokenizer", str(path), f"copy its tokenizer there ({', '.join(_TOKENIZER_FILES)})")


def _has_tokenizer(path: Path) -> bool:
    return any((path / f).is_file() for f in _TOKENIZER_FILES)


def _config(name: str, revision: str | None, trust: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
    except (ValueError, KeyError) as error:
        family = _model_type(Path(name))
        if "trust_remote_code" in str(error):
            raise UserError(
                "this model brings its own code", name, "--trust-remote-code, if you trust its author"
            ) from error
        raise UnsupportedModel(family or name, "an architecture in this version of transformers") from error
    except OSError as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", name, "a directory or a hub id") from error


def _model_type(path: Path) -> str:
    try:
        return str(json.loads((path / "config.json").read_text()).get("model_type", ""))
    except (OSError, json.JSONDecodeError):
        return ""


def _tokenizer(name: str, path: Path, revision: str | None, trust: bool) -> PreTrainedTokenizerBase:
    if path.is_dir() and not _has_tokenizer(path):
        raise UserError("it has no tokenizer", name, f"copy its tokenizer there ({', '.join(_TOKENIZER_FILES)})")
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust)
    except Exception as error:
        raise UserError(f"its tokenizer cannot be read: {str(error).splitlines()[0]}", name) from error


def _weights(name: str, task: Task, config: Any, dtype: torch.dtype, revision: str | None, trust: bool) -> Any:
    factory = getattr(transformers, _CLASSES[task])
    options = {"dtype": dtype, "revision": revision, "trust_remote_code": trust, "use_safetensors": True}
    try:
        model, report = factory.from_pretrained(name, config=config, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"its weights cannot be read: {str(error).splitlines()[0]}", name, "download them again"
        ) from error
    except ValueError as error:
        raise UnsupportedModel(config.model_type, f"a {task} model in transformers") from error
    except OSError as error:
        raise UserError(f"its weights cannot be read: {str(error).splitlines()[0]}", name) from error
    missing = sorted(report["missing_keys"])
    if missing:
        what = f"{len(missing)} of its weights are missing, such as {missing[0]}"
        raise UserError(what, name, "a checkpoint of the same architecture as its config")
    return model


def _device(wish: str | torch.device | None) -> torch.device:
    if wish is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        usable = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ConfigError("device", str(wish), usable) from error
    return device


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or ARM's bf16)."""
    return any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)


def _dtypes(config: Any, wish: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """What the checkpoint is stored in, and what it runs in."""
    own = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    stored = getattr(torch, own) if isinstance(own, str) else own
    if isinstance(wish, str) and wish != "auto":
        asked = getattr(torch, wish, None)
        if not isinstance(asked, torch.dtype) or not asked.is_floating_point:
            raise ConfigError("dtype", wish, ("auto", "float32", "bfloat16", "float16"))
        return stored, asked
    if isinstance(wish, torch.dtype):
        return stored, wish
    half = stored in (torch.bfloat16, torch.float16)
    if half and device.type == "cpu" and not (stored == torch.bfloat16 and cpu_has_bf16()):
        log.warning("%s weights run as float32: this CPU has no instructions for them", str(stored).split(".")[1])
        return stored, torch.float32
    return stored, stored
