"""Checkpoints and adapters as directories that transformers and peft read without maypole. Knows nothing about runs."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from maypole.core.atomic import make_readable
from maypole.core.errors import UserError
from maypole.models.attention import configs
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.loading import quiet_transformers


def save(
    lm: LanguageModel, directory: str | Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
) -> None:
    """Write the adapter of `lm` where it has one, else the whole model, with its tokenizer, as safetensors.

    A model is stored in `dtype`, by default the one it was loaded in, in files of at most `max_shard_size`; an adapter
    as it is held. An adapter names its base by an absolute path where the base is a local directory, unchanged where
    it is a hub id.
    """
    path = Path(directory)
    if lm.adapters and lm.adapter is None:
        raise UserError("this view leaves its adapters out, and only a whole module can be saved", lm.name, "its base")
    if not lm.adapters and lm.quantization:
        what = f"its weights are held as {lm.quantization}, from which those that were stored cannot be told"
        raise UserError(what, lm.name, "the model it was loaded from; or load it without quantization")
    path.mkdir(parents=True, exist_ok=True)
    if lm.adapters:
        save_adapter(lm, path)
    else:
        _save_model(lm, path, dtype or lm.dtype, max_shard_size)
        _make_readable(path)
    _save_tokenizer(lm.tokenizer, path)


def save_adapter(lm: LanguageModel, directory: Path) -> None:
    """Write the adapter of `lm` alone: what peft loads, without a tokenizer."""
    active = list(lm.model.base_model.active_adapters)
    if lm.adapter == FOLLOW and len(active) != 1:
        raise UserError(f"{len(active)} adapters are active together", lm.name, "lm.with_adapter(name)")
    directory.mkdir(parents=True, exist_ok=True)
    _save_adapter(lm, directory, active[0] if lm.adapter in (FOLLOW, None) else str(lm.adapter))
    _make_readable(directory)


def _make_readable(directory: Path) -> None:
    for file in directory.glob("*.safetensors"):
        make_readable(file)  # safetensors writes for its owner alone


def _save_model(lm: LanguageModel, path: Path, stored: torch.dtype, max_shard_size: str) -> None:
    model: Any = lm.transformer
    _make_valid(model)
    running, implementation = model.config.dtype, model.config._attn_implementation
    ours = [(c, k, v) for c in configs(model) for k, v in vars(c).items() if k.startswith("_maypole")]
    for config, name, _ in ours:
        delattr(config, name)
    try:
        with quiet_transformers():
            model.save_pretrained(path, state_dict=_in_dtype(model, stored), max_shard_size=max_shard_size)
        model.config.dtype = stored  # save_pretrained has written what the module runs in
        model.config.save_pretrained(path)
    finally:
        model.config.dtype = running
        model.config._attn_implementation = implementation
        for config, name, value in ours:
            setattr(config, name, value)


def _in_dtype(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict in `dtype`; weights that are one stay one, or they would be stored twice."""
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in converted:
            converted[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = converted[place]
    return state


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Without the notes that transformers keeps about where it was loaded from."""
    tokenizer.save_pretrained(path)
    file = path / "tokenizer_config.json"
    if file.is_file():
        fields = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("is_local", "local_files_only")}
        file.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _make_valid(model: Any) -> None:
    """Checkpoints that set a temperature without sampling are common, and transformers refuses to write them."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True  # what a temperature, top_p or top_k is there for


def _save_adapter(lm: LanguageModel, path: Path, name: str) -> None:
    """peft puts every adapter but "default" into a folder of its own; ours always lies at the root."""
    readme = path / "README.md"
    had_readme = readme.is_file()
    lm.model.save_pretrained(path, selected_adapters=[name], save_embedding_layers=False)
    folder = path / name
    if name != "default" and folder.is_dir():
        for file in folder.iterdir():
            file.replace(path / file.name)
        folder.rmdir()
    if not had_readme:
        readme.unlink(missing_ok=True)  # peft's placeholder
    config = path / "adapter_config.json"
    fields = json.loads(config.read_text())
    base = Path(lm.name)
    fields["base_model_name_or_path"] = str(base.resolve()) if base.is_dir() else lm.name
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
