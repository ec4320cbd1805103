"""An adapter's directory is read whole or refused, and what the engine has stays as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maypole.core.errors import UserError
from maypole.engine import AdapterConfig, Engine, EngineConfig, Request, Sampling
from maypole.models.saving import save
from tests.engine.adapter_fixtures import bytes_changed
from tests.engine.engine_fixtures import lm_of, with_adapters


def _config(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return changed


def _pickled(path: Path) -> None:
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_pickled, "pickle"),
        (lambda path: (path / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda path: (path / "adapter_config.json").write_text("[]"), "holds no mapping"),
        (bytes_changed(lambda data: data[:-100]), "damaged"),
        (bytes_changed(lambda data: (2**40).to_bytes(8, "little") + data[8:]), "damaged"),
        (bytes_changed(lambda data: data.replace(b"[4,32]", b"[4,99]", 1)), "damaged"),
        (_weights(lambda t: {k: v * float("nan") for k, v in t.items()}), "not finite"),
        (_weights(lambda t: {k: v[:, :9].clone() for k, v in t.items()}), "ask for"),
        (_weights(lambda t: {k.replace("layers.0", "layers.9"): v for k, v in t.items()}), "is no linear layer"),
        (_weights(lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "both factors"),
        (_config(use_dora=True), "DoRA"),
        (_config(r=8), "ask for"),
    ],
)  # fmt: skip
def test_a_spoilt_adapter_is_refused_and_says_why(tmp_path: Path, spoil: Callable[[Path], None], said: str):
    lm = with_adapters(lm_of(), "default")
    save(lm, tmp_path)
    engine = Engine(lm.with_adapter(None))
    spoil(tmp_path)
    with pytest.raises(UserError, match=said):
        engine.update(tmp_path, "x")
    assert "x" not in engine.adapters
    assert engine.generate([Request([5, 6], Sampling(max_tokens=1))])[0].token_ids


def test_an_adapter_beyond_the_bounds_or_of_another_base_is_refused(tmp_path: Path):
    lm = with_adapters(lm_of(), "default")
    save(lm, tmp_path)
    for bounds, said in ((AdapterConfig(max_rank=3), "rank 4"), (AdapterConfig(max_bytes=1000), "bytes")):
        with pytest.raises(UserError, match=said):
            Engine(lm.with_adapter(None), EngineConfig(adapters=bounds)).update(tmp_path, "x")
    lm.name = "some/base"
    _config(base_model_name_or_path="other/base")(tmp_path)
    with pytest.raises(UserError, match="other/base"):
        Engine(lm.with_adapter(None)).update(tmp_path, "x")
