"""Where adapters may come from, and which are served."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch

from maypole.core.errors import UserError
from maypole.engine import Request
from maypole.models.saving import save
from tests.engine.adapter_fixtures import GREEDY, adapted, engine_of, folder_of
from tests.engine.engine_fixtures import far_from_zero, hf_greedy, lm_of, random_ids


def test_names_and_links_lead_out_of_no_folder(tmp_path: Path):
    lm = adapted("a", "b")
    inside, outside = folder_of(tmp_path / "in", lm, "a"), folder_of(tmp_path / "out", lm, "b")
    (inside / "link").symlink_to(outside / "b")
    (inside / "parts").mkdir()
    (inside / "parts" / "adapter_config.json").symlink_to(outside / "b" / "adapter_config.json")
    (inside / "parts" / "adapter_model.safetensors").symlink_to(outside / "b" / "adapter_model.safetensors")
    (inside / "fine").symlink_to(inside / "a")
    engine = engine_of(inside)
    for name in ("../out/b", str(outside / "b"), "in/../../out/b", "a/", "/", "..", "a\0", "x" * 400):
        assert name not in engine.adapters
        with pytest.raises(UserError, match="no adapter"):
            engine.generate([Request([5], adapter=name)])
    for name in ("link", "parts"):
        with pytest.raises(UserError, match="outside the folders"):
            engine.generate([Request([5], adapter=name)])
    fine, same = engine.generate([Request([5], GREEDY, adapter=name) for name in ("fine", "a")])
    assert fine.token_ids == same.token_ids


def test_adapters_come_from_the_hub_only_where_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--a"
    folder_of(tmp_path, adapted("a"))
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (tmp_path / "a").rename(repository / "snapshots" / commit)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no adapter"):
        engine_of().generate([Request([5], adapter="owner/a")])
    engine = engine_of(hub=True)
    assert "owner/a" not in engine.adapters
    assert engine.adapters.may_ask("owner/a")
    assert engine.generate([Request([5], GREEDY, adapter="owner/a")])[0].finish_reason == "length"
    assert "owner/a" in engine.adapters
    with pytest.raises(UserError, match="hub cannot be reached"):
        engine.generate([Request([5], adapter="owner/other")])
    named = engine_of()
    named.adapters.add("mine", "owner/a")
    assert named.generate([Request([5], GREEDY, adapter="mine")])[0].finish_reason == "length"


def test_a_repository_that_is_too_large_is_refused_before_any_of_it_comes(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []

    def snapshot_download(*args: Any, dry_run: bool = False, **options: Any) -> Any:
        asked.append(dry_run)
        return [SimpleNamespace(file_size=10**9), SimpleNamespace(file_size=None)]

    monkeypatch.setattr("maypole.models.hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="its files have 1,000,000,000 bytes"):
        engine_of(hub=True, max_bytes="10MB").generate([Request([5], adapter="owner/large")])
    assert asked == [True]


def test_an_adapter_states_its_base_and_is_refused_by_another(tmp_path: Path):
    lm = adapted("default")
    save(lm, tmp_path / "mine")
    config = tmp_path / "mine" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "other/base"}))
    engine = engine_of(tmp_path)
    engine.lm.name = "some/base"
    engine.update(engine.lm)
    with pytest.raises(UserError, match="the adapter is one of 'other/base', and the base is 'some/base'"):
        engine.generate([Request([5], adapter="mine")])


@pytest.mark.parametrize(("r", "modules"), [(1, ["q_proj"]), (64, "all-linear")])
def test_a_rank_of_one_and_of_64_are_served_as_peft_computes_them(tmp_path: Path, r: int, modules: Any):
    lm = lm_of()
    config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=modules, task_type="CAUSAL_LM")
    model: Any = far_from_zero(peft.get_peft_model(lm.transformer, config, adapter_name="x"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.div_(r**0.5)
    model.save_pretrained(str(tmp_path))
    prompt = random_ids([9])[0]
    wanted = hf_greedy(model, prompt, 12)
    assert engine_of(tmp_path).generate([Request(prompt, GREEDY, adapter="x")])[0].token_ids == wanted


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapter_of_head_or_embeddings_is_refused_by_name(tmp_path: Path, module: str):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", module], task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(lm_of(tie_word_embeddings=False).transformer, config, adapter_name="x")
    model.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=rf"changes embeddings or head: (model\.)?{module}\."):
        engine_of(tmp_path).generate([Request([5], adapter="x")])
