"""What a finished training run leaves: a checkpoint or adapter directory with a card. Knows nothing about the loop."""

from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from maypole.core.artifact import Artifact, command_line
from maypole.core.errors import ArtifactError
from maypole.models.adapters import load_adapter, merged
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.saving import save
from maypole.train.config import TrainConfig
from maypole.train.trainable import become


def save_result(lm: LanguageModel, artifact: Artifact, metrics: dict[str, Any]) -> None:
    """Weights, tokenizer and README.md at the root of the artifact."""
    save(lm, artifact.path)
    (artifact.path / "README.md").write_text(card(lm, artifact, metrics))


def load_result(lm: LanguageModel, artifact: Artifact, config: TrainConfig) -> None:
    """Put the weights of a finished run into `lm`, as if it had just been trained."""
    path = artifact.path
    if (path / "adapter_config.json").is_file():
        if lm.adapters and config.peft is None:
            name = lm.model.base_model.active_adapters[0] if lm.adapter in (FOLLOW, None) else lm.adapter
            set_peft_model_state_dict(lm.model, load_file(path / "adapter_model.safetensors"), adapter_name=name)
        else:
            if lm.adapters:
                become(lm, merged(lm))
                lm.name = str(path.absolute() / "base")
            become(lm, load_adapter(lm, path))
    else:
        _load_weights(lm, path)
        lm.base_changed()
    lm.fingerprint = artifact.key


def _load_weights(lm: LanguageModel, path: Path) -> None:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ArtifactError("holds no weights", str(path), "a directory that a training command wrote")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= load_file(file)
    report = lm.transformer.load_state_dict(state, strict=False)
    tied = set(getattr(lm.transformer, "all_tied_weights_keys", {}) or {})
    missing = [k for k in report.missing_keys if k not in tied]
    if missing or report.unexpected_keys:
        wrong = (missing or report.unexpected_keys)[0]
        raise ArtifactError(f"its weights do not fit this model: {wrong}", str(path))


def card(lm: LanguageModel, artifact: Artifact, metrics: dict[str, Any]) -> str:
    """README.md as the hub reads it: base model, numbers, the command that made it."""
    base = str(lm.name)
    shown = base if not Path(base).is_dir() else Path(base).name
    adapter = bool(lm.adapters)
    numbers = "\n".join(
        f"| {name} | {value:,.4g} |" for name, value in metrics.items() if isinstance(value, int | float)
    )
    head = [
        "---",
        f"base_model: {shown}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "tags:",
        "- maypole",
    ]
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {artifact.out.name}",
            "",
            f"{'An adapter for' if adapter else 'Trained from'} `{shown}` with maypole.",
            "",
            "| measure | value |",
            "|---|---|",
            numbers,
            "",
            "Made by:",
            "",
            "```",
            command_line(artifact.manifest),
            "```",
            "",
        ]
    )
