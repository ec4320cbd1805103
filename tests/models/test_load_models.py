import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import maypole.models as public
from maypole.core.config import ModelOptions
from maypole.core.errors import ConfigError
from maypole.core.identity import identity
from maypole.models import LanguageModel, PeftMethod, PeftOptions, create, load, loading, new_adapter, save
from maypole.models.hub import commits
from tests.models.conftest import logits
from tests.tiny_models import config_of


def test_a_directory_loads_in_eval_mode_with_its_name_and_fingerprint(make, tokenizer):
    path = make("llama")
    lm = load(path)
    assert not lm.model.training
    assert (lm.name, lm.fingerprint, lm.dtype) == (str(path.resolve()), identity(path), torch.float32)
    assert (lm.adapters, lm.base_version, lm.max_length) == ((), 0, 512)
    assert lm.tokenizer("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_a_relative_directory_is_the_same_model(make, monkeypatch):
    path = make("llama")
    monkeypatch.chdir(path.parent)
    assert load("./llama").name == str(path.resolve())
    assert load("llama").fingerprint == load(path).fingerprint


def test_a_copy_has_the_same_fingerprint_and_a_changed_weight_another(make, tmp_path):
    path = make("llama")
    shutil.copytree(path, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == load(path).fingerprint
    lm = load(path)
    with torch.no_grad():
        lm.model.model.norm.weight[0] += 1
    save(lm, tmp_path / "changed")
    assert load(tmp_path / "changed").fingerprint != lm.fingerprint


def test_a_tokenizer_of_its_own_stays_what_it_is_beside_a_model_of_any_family(make, tokenizer):
    text = "the cat's mat 12"
    for family in ("qwen2", "gpt2", "gpt_neox", "llama"):
        found = load(make(family)).tokenizer
        assert (len(found), found.unk_token) == (len(tokenizer), tokenizer.unk_token)
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_score_and_encode_load_their_own_heads(make, tmp_path, tokenizer):
    path = make("llama", tie_word_embeddings=False)
    encoder = load(path, task="encode")
    assert type(encoder.model).__name__ == "LlamaModel"
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_config(config_of("llama", num_labels=3))
    save(LanguageModel(scorer.eval(), tokenizer, "scorer", None), tmp_path / "scorer")
    lm = load(tmp_path / "scorer", task="score")
    assert torch.equal(lm.model.score.weight, scorer.score.weight)
    assert logits(lm.model, tokenizer).shape == (3,)


def test_auto_dtype_is_the_checkpoint_s_own_where_the_cpu_computes_it(make, monkeypatch):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: True)
    lm = load(make("llama", dtype=torch.bfloat16))
    assert (lm.dtype, lm.model.dtype) == (torch.bfloat16, torch.bfloat16)


def test_bf16_weights_run_as_fp32_on_a_cpu_without_bf16_and_it_is_said_once(make, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: False)
    loading._say_once.cache_clear()
    path = make("llama", dtype=torch.bfloat16)
    lm, _ = load(path), load(path)
    assert (lm.dtype, lm.model.dtype) == (torch.bfloat16, torch.float32)
    assert [r.message for r in caplog.records if "run as float32" in r.message] == [
        "bfloat16 weights run as float32: this CPU has no instructions for them"
    ]
    save(lm, tmp_path / "again")
    assert identity(tmp_path / "again") == lm.fingerprint


def test_an_asked_dtype_is_used_and_the_stored_one_remembered(make):
    lm = load(make("llama"), dtype="bfloat16")
    assert (lm.dtype, lm.model.dtype) == (torch.float32, torch.bfloat16)
    assert load(make("llama"), dtype=torch.float64).model.dtype == torch.float64


def test_a_config_that_tells_no_dtype_leaves_it_to_the_weights(make):
    path = make("llama", dtype=torch.bfloat16)
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    assert load(path).dtype == torch.bfloat16


@pytest.mark.parametrize("wish", ["int8", "bf16", "nonsense", torch.int32])
def test_a_dtype_that_is_no_float_is_an_error(make, wish):
    with pytest.raises(ConfigError, match="accepted: auto, float32, bfloat16, float16"):
        load(make("llama"), dtype=wish)


@pytest.mark.parametrize("wish", ["cuda:77", "tpu", "meta", ""])
def test_a_device_that_is_not_there_is_an_error_and_never_a_fallback(make, wish):
    with pytest.raises(ConfigError, match=r"--device: .* does not work\n  hint: accepted: cpu"):
        load(make("llama"), device=wish)


def test_create_depends_on_config_and_seed_only_and_leaves_the_global_generator(tokenizer):
    before = torch.get_rng_state()
    first = create(config_of("gpt2"), tokenizer, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = create(config_of("gpt2"), tokenizer, 3), create(config_of("gpt2"), tokenizer, 4)
    weights = [lm.model.transformer.h[2].mlp.c_fc.weight for lm in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (first.name, first.model.dtype, first.model.training) == ("new gpt2", torch.float32, False)


def test_create_wants_room_for_every_token(tokenizer):
    with pytest.raises(ConfigError, match="at least the tokenizer's 97"):
        create(config_of("llama", vocab_size=50), tokenizer, 0)


def test_create_from_needs_no_weights(make):
    path = make("llama")
    (path / "model.safetensors").unlink()
    lm = loading.create_from(path, seed=1)
    assert lm.name == str(path)
    assert torch.equal(lm.model.lm_head.weight, loading.create_from(path, seed=1).model.lm_head.weight)
    half = loading.create_from(path, seed=1, device="cpu", dtype="bfloat16")
    assert (half.dtype, half.model.dtype) == (torch.bfloat16, torch.float32)


def test_a_hub_id_is_read_from_the_hub_s_cache_and_known_by_its_commit(make, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(make("llama"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    lm = load("owner/tiny")
    assert (lm.name, lm.fingerprint) == ("owner/tiny", commit)
    save(new_adapter(lm, PeftOptions(r=2), seed=0), tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "owner/tiny"
    assert load(tmp_path / "adapter").name == "owner/tiny"
    options = ModelOptions(model="owner/tiny", adapter=str(tmp_path / "adapter"))
    assert commits(options) == {"model_commit": commit}


def test_code_beside_a_checkpoint_runs_only_when_asked(make, tmp_path):
    path = make("llama")
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "llamalike",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'llamalike'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(public.loading.UserError, match="brings its own code\n  hint: --trust-remote-code"):
        load(path)
    assert not (tmp_path / "ran").exists()
    assert type(load(path, trust_remote_code=True).model).__name__ == "Own"
    assert (tmp_path / "ran").exists()


def test_the_names_that_other_rooms_import_keep_their_signatures():
    def names(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(public.load) == [
        "model_name_or_path", "adapter", "task", "device", "dtype", "quantization", "revision", "trust_remote_code",
    ]  # fmt: skip
    keywords = inspect.signature(public.load).parameters
    assert all(keywords[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(keywords)[1:])
    assert (keywords["dtype"].default, keywords["task"].default) == ("auto", "causal")
    assert names(public.create) == ["config", "tokenizer", "seed"]
    assert names(public.blocks) == ["model"]
    assert names(public.token_logprobs) == ["hidden", "weight", "targets", "bias", "softcap", "scale", "chunk"]
    assert [f.name for f in fields(LanguageModel)][:4] == ["model", "tokenizer", "name", "fingerprint"]
    assert [f.name for f in fields(PeftOptions)] == [
        "type", "r", "lora_alpha", "lora_dropout", "target_modules", "options",
    ]  # fmt: skip
    assert [f.name for f in fields(PeftMethod)] == ["name", "config_class", "register", "apply"]
    assert Path(inspect.getfile(public.save)).name == "saving.py"
