"""Checkpoints and adapters as directories that transformers and peft read without maypole. Knows nothing about runs."""

import json
from pathlib import Path

import torch

from maypole.core.errors import UserError
from maypole.models.language_model import FOLLOW, LanguageModel


def save(lm: LanguageModel, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the adapter of `lm` where it has one, else the whole model, with its tokenizer, as safetensors.

    Weights are stored in `dtype`, by default the one they were loaded in. An adapter names its base by an absolute
    path where the base is a local directory, unchanged where it is a hub id.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    stored = dtype or lm.dtype
    if lm.adapters:
        name = lm.model.active_adapters[0] if lm.adapter in (FOLLOW, None) else lm.adapter
        _save_adapter(lm, path, name)
    else:
        model = lm.transformer
        state = {k: v.to(stored) if v.is_floating_point() else v for k, v in model.state_dict().items()}
        running = model.config.dtype
        implementation = model.config._attn_implementation
        try:
            model.config.dtype = stored
            model.save_pretrained(path, state_dict=state)
        finally:
            model.config.dtype = running
            model.config._attn_implementation = implementation
    lm.tokenizer.save_pretrained(path)


def _save_adapter(lm: LanguageModel, path: Path, name: str) -> None:
    """peft puts every adapter but "default" into a folder of its own; ours always lies at the root."""
    lm.model.save_pretrained(path, selected_adapters=[name], save_embedding_layers=False)
    folder = path / name
    if name != "default" and folder.is_dir():
        for file in folder.iterdir():
            file.replace(path / file.name)
        folder.rmdir()
    readme = path / "README.md"
    readme.unlink(missing_ok=True)  # peft's placeholder
    config = path / "adapter_config.json"
    if not config.is_file():
        raise UserError("peft wrote no adapter_config.json", str(path))
    fields = json.loads(config.read_text())
    base = Path(str(fields.get("base_model_name_or_path") or lm.name))
    fields["base_model_name_or_path"] = str(base.resolve()) if base.is_dir() else str(base)
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
