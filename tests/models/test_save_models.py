"""What `save` writes is read by transformers and peft in a process that has no maypole, with equal logits."""

import json

import pytest
import torch
from safetensors.torch import load_file

from maypole.core.errors import UserError
from maypole.models import PeftOptions, load, merged, new_adapter, packed_execution, save
from tests.models.conftest import TEXT, as_a_stranger_reads, logits
from tests.tiny_models import model_of


def _adapted(path, **options):
    """A LoRA of rank 4 with weights that matter: what peft draws leaves the function unchanged."""
    lm = new_adapter(load(path), PeftOptions(r=4, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return lm


def test_models_and_adapters_mean_the_same_to_transformers_and_peft_alone(make, tmp_path):
    ours, paths = {}, []
    for name, family, changes in (
        ("tied", "llama", {}),
        ("untied", "llama", {"tie_word_embeddings": False}),
        ("bf16", "gemma2", {"dtype": torch.bfloat16}),
        ("fused", "phi3", {}),
    ):
        path = make(family, name=name, **changes)
        lm = load(path, dtype="float32")
        save(lm, path)
        paths.append(path)
        if name != "bf16":  # a stranger runs it in bf16
            ours[name] = logits(lm.model, lm.tokenizer)
    for name, family, options in (
        ("lora-llama", "llama", {}),
        ("lora-gpt2", "gpt2", {}),
        ("lora-phi3", "phi3", {}),
        ("lora-head", "mistral", {"target_modules": ("q_proj", "lm_head")}),
        ("lora-tied-head", "llama", {"target_modules": ("down_proj", "lm_head")}),
        ("dora", "gpt_neox", {"target_modules": ("dense",), "options": {"use_dora": True}}),
    ):
        base = make(family, name=f"base-of-{name}")
        lm, plain = _adapted(base, **options), load(base)
        save(lm, tmp_path / name)
        paths.append(tmp_path / name)
        ours[name] = logits(lm.model, lm.tokenizer)
        assert not torch.allclose(ours[name], logits(plain.model, plain.tokenizer), atol=1e-2)
        assert torch.equal(logits(load(tmp_path / name).model, lm.tokenizer), ours[name])
        merge = merged(load(tmp_path / name))
        save(merge, tmp_path / f"merged-{name}")
        paths.append(tmp_path / f"merged-{name}")
        ours[f"merged-{name}"] = ours[name]
    theirs = as_a_stranger_reads(paths, tmp_path)
    for name, expected in ours.items():
        assert theirs[name].shape == expected.shape, name
        assert torch.allclose(theirs[name], expected, atol=2e-5), name
    assert set(theirs) - set(ours) == {"bf16"}


def test_a_saved_model_is_stored_in_the_dtype_it_was_loaded_in_and_its_config_says_so(make, tmp_path):
    lm = load(make("llama", dtype=torch.bfloat16), dtype="float32")
    save(lm, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors  # tied: stored once
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (lm.model.dtype, lm.model.config.dtype) == (torch.float32, torch.float32)
    save(lm, tmp_path / "wide", dtype=torch.float32)
    assert load(tmp_path / "wide").dtype == torch.float32


def test_saving_again_writes_the_same_bytes(make, tmp_path):
    for family in ("llama", "gpt2", "gemma2"):
        path = make(family)
        save(load(path), tmp_path / "again")
        for file in path.iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), (family, file.name)


def test_nothing_of_packed_execution_reaches_the_disk(make, tmp_path):
    lm = load(make("llama"))
    with packed_execution(lm.model):
        save(lm, tmp_path / "saved")
        assert lm.model.config._attn_implementation == "maypole"
    assert "maypole" not in (tmp_path / "saved" / "config.json").read_text()


def test_a_generation_config_that_transformers_would_not_write_is_put_right(make, tmp_path):
    lm = load(make("llama"))
    lm.model.generation_config.temperature = 0.5
    save(lm, tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["do_sample"]) == (0.5, True)


def test_an_adapter_of_any_name_lies_at_the_root_and_names_its_base_absolutely(make, tmp_path, monkeypatch):
    base = make("llama")
    monkeypatch.chdir(tmp_path)
    lm = new_adapter(load("llama"), PeftOptions(r=2), seed=0, name="first")
    lm = new_adapter(lm, PeftOptions(r=3, target_modules=("q_proj",)), seed=0, name="second")
    for name, rank in (("first", 2), ("second", 3)):
        save(lm.with_adapter(name), tmp_path / name)
        fields = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (fields["base_model_name_or_path"], fields["r"]) == (str(base), rank)
        assert not (tmp_path / name / "README.md").exists()
        assert not (tmp_path / name / name).exists()
    save(lm, tmp_path / "active")
    assert json.loads((tmp_path / "active" / "adapter_config.json").read_text())["r"] == 3


def test_a_card_that_is_there_stays(make, tmp_path):
    lm = new_adapter(load(make("llama")), PeftOptions(r=2), seed=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine\n")
    save(lm, tmp_path / "out")
    assert "mine" in (tmp_path / "out" / "README.md").read_text()


def test_a_view_without_its_adapter_cannot_be_saved(make, tmp_path):
    lm = new_adapter(load(make("llama")), PeftOptions(r=2), seed=0)
    with pytest.raises(UserError, match="this view leaves its adapters out"):
        save(lm.with_adapter(None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_text_is_more_than_special_tokens(tokenizer):
    assert len(set(tokenizer(TEXT)["input_ids"])) > 8
    assert model_of("llama").config.vocab_size == len(tokenizer)


def test_weights_are_as_readable_as_any_file(make, tmp_path):
    path = make("llama")
    (tmp_path / "plain").touch()
    assert (path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
