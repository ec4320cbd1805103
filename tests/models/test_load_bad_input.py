"""What is wrong with a model is said in one paragraph that names the directory and what would be right."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maypole.core.errors import ConfigError, UnsupportedCapability, UnsupportedModel, UserError
from maypole.models import PeftOptions, load, load_adapter, new_adapter, save
from maypole.models.loading import create_from
from tests.models.conftest import logits


def _refused(path, kind=UserError, **options) -> str:
    with pytest.raises(kind) as caught:
        load(path, **options)
    assert Path(path).name in caught.value.message
    assert caught.value.expected
    return caught.value.message


def _edit(file: Path, **changes) -> None:
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


@pytest.mark.parametrize("name", ["/no/where", "./nowhere", "nowhere", "~/x", "a/b/c"])
def test_a_missing_directory(name):
    with pytest.raises(UserError, match="no such directory"):
        load(name)


def test_a_file(make):
    assert "this is a file" in _refused(make("llama") / "config.json")


def test_a_hub_id_without_network(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no such directory, and the hub cannot be reached" in _refused("someone/something")


def test_a_name_that_no_hub_could_have(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "not a hub id" in _refused("some one/some..thing")


def test_an_empty_directory(tmp_path):
    assert "config.json is missing" in _refused(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        create_from(tmp_path, 0)


def test_a_config_that_is_no_json(make):
    path = make("llama")
    (path / "config.json").write_text("{")
    assert "config.json cannot be read" in _refused(path)


def test_an_unknown_family(make):
    path = make("llama")
    _edit(path / "config.json", model_type="nosuch")
    message = _refused(path, UnsupportedModel)
    assert "model family 'nosuch' lacks an architecture in this version of transformers" in message


def test_a_config_without_a_family(make):
    path = make("llama")
    _edit(path / "config.json", model_type=None)
    assert "names no model_type" in _refused(path)


def test_a_family_without_the_asked_head(make):
    path = make("llama")
    _edit(path / "config.json", model_type="clip")
    assert "'clip' lacks a causal language model" in _refused(path, UnsupportedModel)


def test_no_tokenizer_or_a_broken_one(make):
    path = make("llama")
    (path / "tokenizer.json").write_text("{}")
    assert "its tokenizer cannot be read" in _refused(path)
    (path / "tokenizer.json").unlink()
    assert "it has no tokenizer\n  hint: copy its tokenizer there (tokenizer.json" in _refused(path)


def test_no_weights(make):
    path = make("llama")
    (path / "model.safetensors").unlink()
    assert "it has no weights\n  hint: a whole checkpoint; `train pretrain` makes weights" in _refused(path)


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_pickled_weights_are_refused_and_never_opened(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make("llama")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap()))
    assert "its weights are not in safetensors\n  hint: convert them; pickled weights are never read" in _refused(path)
    assert not Path("sprung").exists()


def test_a_missing_shard_and_a_broken_index(make, tmp_path):
    lm = load(make("llama"))
    save(lm, tmp_path / "sharded", max_shard_size="20KB")
    path = tmp_path / "sharded"
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits(load(path).model, lm.tokenizer), logits(lm.model, lm.tokenizer))
    shards[1].unlink()
    assert f"1 of {len(shards)} shards are missing: {shards[1].name}" in _refused(path)
    (path / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json cannot be read" in _refused(path)


@pytest.mark.parametrize("size", [0, 4, 5000])
def test_truncated_weights(make, size):
    path = make("llama")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "its weights cannot be read" in _refused(path)


def test_weights_of_another_shape(make):
    path = make("llama")
    _edit(path / "config.json", intermediate_size=64)
    message = _refused(path)
    assert "9 of its weights have another shape than its config says: model.layers.0.mlp.down_proj.weight" in message
    assert "is (32, 48)\n  hint: (32, 64)" in message


def test_missing_weights_are_never_drawn_at_random(make):
    path = make("llama")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert "1 of its weights are missing, such as model.layers.1.mlp.up_proj.weight" in _refused(path)


def test_a_score_head_is_never_drawn_at_random(make):
    assert "such as score.weight\n  hint: a checkpoint that holds a model with a score head" in _refused(
        make("llama"), task="score"
    )


def test_a_quantized_checkpoint(make):
    path = make("llama")
    _edit(path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "stored quantized" in _refused(path, UnsupportedCapability)


def test_an_unknown_task(make):
    with pytest.raises(ConfigError, match="accepted: causal, score, encode"):
        load(make("llama"), task="chat")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def adapter(make, tmp_path) -> Path:
    save(new_adapter(load(make("llama")), PeftOptions(r=2), seed=0), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_of_another_model_leaves_the_model_as_it_was(make, adapter):
    for name, changes, said in (
        ("wider", {"intermediate_size": 64}, "size mismatch"),
        ("deeper", {"num_hidden_layers": 4}, "14 of its weights are missing"),
        ("flatter", {"num_hidden_layers": 2}, "14 of its weights have no place in the model"),
    ):
        lm = load(make("llama", name=name, **changes))
        before, keys = logits(lm.model, lm.tokenizer), list(lm.model.state_dict())
        with pytest.raises(UserError, match=f"adapter: the adapter does not fit .*{name}: .*{said}") as caught:
            load_adapter(lm, adapter)
        assert caught.value.expected.startswith("an adapter of ")
        assert (list(lm.model.state_dict()), lm.adapters) == (keys, ())
        assert torch.equal(logits(lm.model, lm.tokenizer), before)
        assert all(p.requires_grad for p in lm.model.parameters())


def test_a_second_adapter_that_does_not_fit_leaves_the_first_active(make, adapter, tmp_path):
    other = load(make("llama", name="wider", intermediate_size=64))
    save(new_adapter(other, PeftOptions(r=2), seed=0), tmp_path / "wide")
    lm = load(adapter)
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(lm, tmp_path / "wide", name="second")
    assert (lm.adapters, lm.model.base_model.active_adapters) == (("default",), ["default"])
    assert not any(".second." in key for key in lm.model.state_dict())
    with pytest.raises(UserError, match="has an adapter called 'default' already"):
        load_adapter(lm, adapter)


def test_adapters_that_are_not_whole(adapter):
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights[:100])
    assert "adapter_model.safetensors cannot be read" in _refused(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Trap()))
    assert "adapter_model.safetensors is missing\n  hint: adapters are read from safetensors only" in _refused(adapter)
    (adapter / "adapter_config.json").write_text("[")
    assert "adapter_config.json cannot be read" in _refused(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "adapter_config.json holds no mapping" in _refused(adapter)


def test_an_adapter_whose_base_is_gone(adapter):
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    Path(base).rename(Path(base).with_name("moved"))
    assert f"its base model '{base}' is not there\n  hint: --model BASE --adapter {adapter}" in _refused(adapter)
    assert load(Path(base).with_name("moved"), adapter=adapter).adapters == ("default",)
    Path(base).with_name("moved").rename(adapter / "base")
    assert load(adapter).name == str(adapter / "base")


def test_two_adapters_at_once(adapter):
    assert "--adapter is given too" in _refused(adapter, adapter=adapter)


def test_something_that_is_no_adapter(make):
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        load(make("llama"), adapter=make("gpt2"))
    with pytest.raises(UserError, match="no such directory"):
        load(make("llama"), adapter="/no/where")
