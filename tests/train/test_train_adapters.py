"""Adapters of several PEFT types train packed, are saved as PEFT directories, go on, and stack."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from maypole.core.errors import UserError
from maypole.models import load, save
from maypole.models.peft_options import PeftOptions
from maypole.train import fit
from maypole.train.trainable import trains_base
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, farthest, ids_of, leaf, lines_of, lm_with, tree_rows, weights_of

ROWS = [leaf(ids_of(5 + i % 9, i)) for i in range(20)]
TYPES = {
    "lora": PeftOptions(r=4),
    "dora": PeftOptions(r=4, options={"use_dora": True}),
    "rslora": PeftOptions(r=4, options={"use_rslora": True}),
    "ia3": PeftOptions(type="ia3", target_modules=("k_proj", "v_proj", "down_proj"),
                       options={"feedforward_modules": ["down_proj"]}),
    "vera": PeftOptions(type="vera", r=8, target_modules=("q_proj", "v_proj"), options={"d_initial": 0.1}),
    "loha": PeftOptions(type="loha", r=2, target_modules=("q_proj", "up_proj")),
    "head too": PeftOptions(r=4, target_modules=("q_proj", "lm_head")),
    "whole head": PeftOptions(r=4, target_modules=("q_proj",), options={"modules_to_save": ["lm_head"]}),
}  # fmt: skip


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([ids_of(17, 5)]), use_cache=False).logits[0].float()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    save(lm_with(model_of("llama", tie_word_embeddings=False, vocab_size=260)), path)
    return path


def train(lm: Any, out: Path, **changes: Any) -> Any:
    wanted = config(**{"learning_rate": 3e-3, "examples_per_step": 20, **changes})
    return fit(lm, tree_rows(ROWS), Trees(), wanted, out=out)


@pytest.mark.parametrize("name", TYPES)
def test_trains_and_loads_in_peft_with_equal_logits(name: str, base: Path, tmp_path):
    lm = load(base)
    before, plain = weights_of(lm), logits(lm.model)
    artifact = train(lm, tmp_path / "adapter", peft=TYPES[name])
    assert lines_of(artifact.path)[-1]["loss"] < lines_of(artifact.path)[0]["loss"]
    assert not torch.allclose(logits(lm.model), plain, atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), artifact.path)
    torch.testing.assert_close(logits(loaded), logits(lm.model), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(load(artifact.path).model), logits(lm.model), atol=1e-6, rtol=0)
    with lm.with_adapter(None).active() as model:
        torch.testing.assert_close(logits(model), plain, atol=1e-6, rtol=0)
    assert lm.base_version == 0
    after = {n.replace(".base_layer", "").removeprefix("base_model.model."): p for n, p in weights_of(lm).items()}
    assert all(torch.equal(after[n], p) for n, p in before.items() if n in after)
    saved = json.loads((artifact.path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("name", TYPES)
def test_only_what_an_adapter_adds_learns(name: str, base: Path, tmp_path):
    lm = load(base)
    assert trains_base(lm.model)
    train(lm, tmp_path / "adapter", peft=TYPES[name], max_steps=1)
    assert not trains_base(lm.model)
    biased = peft.get_peft_model(model_of("gpt2"), peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all"))
    assert trains_base(biased)


def test_an_adapter_at_hand_goes_on_and_its_neighbours_stay(tmp_path, base: Path):
    """Names that are the beginning of one another are told apart."""
    lm = load(base)
    train(lm, tmp_path / "first", peft=PeftOptions(r=4))
    first = logits(lm.model)
    again = load(base, adapter=tmp_path / "first")
    again.model.add_adapter("def", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    again.model.add_adapter("default2", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = weights_of(again)
    train(again, tmp_path / "second")
    moved = {n for n, p in weights_of(again).items() if not torch.equal(p, before[n])}
    assert moved
    assert all(".default." in name for name in moved)
    assert {n for n, p in again.model.named_parameters() if p.requires_grad} >= moved
    assert not torch.allclose(logits(again.model), first, atol=1e-3)
    loaded = load(base, adapter=tmp_path / "second")
    torch.testing.assert_close(logits(loaded.model), logits(again.model), atol=1e-6, rtol=0)


def test_a_view_of_one_adapter_trains_that_one(tmp_path, base: Path):
    lm = load(base)
    train(lm, tmp_path / "first", peft=PeftOptions(r=4))
    lm.model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    view, before = lm.with_adapter("b"), weights_of(lm)
    train(view, tmp_path / "b")
    assert {n for n, p in weights_of(lm).items() if not torch.equal(p, before[n])} == {n for n in before if ".b." in n}
    with pytest.raises(UserError, match="leaves its adapters out"):
        train(lm.with_adapter(None), tmp_path / "none")


def test_a_new_adapter_on_a_loaded_one_merges_it_and_keeps_the_base_beside_it(tmp_path, base: Path):
    lm = load(base)
    train(lm, tmp_path / "first", peft=PeftOptions(r=4))
    stacked = load(base, adapter=tmp_path / "first")
    out = tmp_path / "second"
    train(stacked, out, peft=PeftOptions(r=2))
    torch.testing.assert_close(logits(load(out / "base").model), logits(lm.model), atol=1e-5, rtol=0)
    saved = json.loads((out / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(out / "base")
    assert saved["r"] == 2
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(alone), logits(stacked.model), atol=1e-6, rtol=0)
    out.rename(tmp_path / "moved")
    torch.testing.assert_close(logits(load(tmp_path / "moved").model), logits(stacked.model), atol=1e-6, rtol=0)
    (tmp_path / "moved").rename(out)
    again = load(base, adapter=tmp_path / "first")  # the same call on the finished result
    train(again, out, peft=PeftOptions(r=2))
    torch.testing.assert_close(logits(again.model), logits(stacked.model), atol=1e-6, rtol=0)
    assert again.name == stacked.name == str(out / "base")


def test_a_finished_adapter_goes_into_the_model_at_hand(tmp_path, base: Path):
    first = load(base)
    train(first, tmp_path / "a", peft=PeftOptions(r=4))
    second = load(base)
    train(second, tmp_path / "a", peft=PeftOptions(r=4))
    assert torch.equal(logits(first.model), logits(second.model))
    train(first, tmp_path / "b")
    train(second, tmp_path / "b")
    assert torch.equal(logits(first.model), logits(second.model))
    assert first.fingerprint == second.fingerprint


def test_an_error_takes_a_new_adapter_out_again(tmp_path, base: Path):
    lm = load(base)
    before, flags = weights_of(lm), [p.requires_grad for p in lm.model.parameters()]
    fingerprint, module = lm.fingerprint, lm.model
    with pytest.raises(UserError, match="learning-rate"):
        train(lm, tmp_path / "a", peft=PeftOptions(r=4), learning_rate=1e30)
    assert lm.model is module
    assert lm.fingerprint == fingerprint
    assert lm.adapters == ()
    assert all(torch.equal(p, before[n]) for n, p in weights_of(lm).items())
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert not lm.model.training


def test_runs_of_equal_seed_are_equal_and_others_are_not(tmp_path, base: Path):
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        lm = load(base)
        fit(lm, tree_rows(ROWS), Trees(), config(peft=PeftOptions(r=4)), out=tmp_path / name, seed=seed)
        made[name] = weights_of(lm)
    assert farthest(made["a"], made["b"]) == 0.0
    assert farthest(made["a"], made["c"]) > 0.0
