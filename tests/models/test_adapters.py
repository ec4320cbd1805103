import importlib.metadata
import json
import random
from dataclasses import dataclass

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel

from maypole.core.errors import ConfigError, UnsupportedModel, UserError
from maypole.core.identity import identity
from maypole.models import PeftMethod, PeftOptions, load, load_adapter, merged, new_adapter, save
from maypole.models.adapters import ENTRY_POINTS, config_class
from maypole.models.language_model import adapters_enabled
from tests.models.conftest import logits


def _loud(lm, scale: float = 0.1):
    """`lm` whose adapters change what it says."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return lm


@pytest.fixture
def two(make):
    lm = new_adapter(load(make("llama")), PeftOptions(r=2), seed=0, name="a")
    return _loud(new_adapter(lm, PeftOptions(r=3, target_modules=("q_proj", "lm_head")), seed=0, name="b"))


def _state(lm) -> tuple:
    grads = tuple(name for name, p in lm.model.named_parameters() if p.requires_grad)
    return list(lm.model.base_model.active_adapters), adapters_enabled(lm.model), grads


def test_a_new_adapter_is_drawn_from_the_seed_alone_and_trains_alone(make):
    path = make("llama")
    drawn = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        random.seed(noise)
        before = torch.get_rng_state()
        lm = new_adapter(load(path), PeftOptions(r=2), seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(lm)
    other = new_adapter(load(path), PeftOptions(r=2), seed=6)
    tensors = [[p for n, p in lm.model.named_parameters() if "lora_A" in n] for lm in (*drawn, other)]
    assert len(tensors[0]) == 21
    assert all(torch.equal(a, b) for a, b in zip(tensors[0], tensors[1]))
    assert not any(torch.equal(a, b) for a, b in zip(tensors[0], tensors[2]))
    assert drawn[0].fingerprint == drawn[1].fingerprint != other.fingerprint
    assert {n.split(".")[-3] for n, p in drawn[0].model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_all_linear_means_every_linear_layer_but_the_head_in_every_family(make):
    for family, count in (("llama", 7), ("gpt2", 4), ("phi3", 4), ("gpt_neox", 4)):
        lm = new_adapter(load(make(family)), PeftOptions(r=1), seed=0)
        names = [n for n, _ in lm.model.named_parameters() if "lora_A" in n]
        assert len(names) == 3 * count, family
        assert not any("lm_head" in n or "embed_out" in n for n in names)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PeftOptions(type="nosuch"), "--peft.type: 'nosuch' does not work\n  hint: accepted: .*lora"),
        (PeftOptions(type="prompt_tuning", options={"num_virtual_tokens": 3}), "prompt learning cannot be packed"),
        (PeftOptions(type="prefix_tuning", options={"num_virtual_tokens": 3}), "prompt learning cannot be packed"),
        (PeftOptions(options={"use_dara": True}), "'use_dara' does not work\n  hint: accepted: fields of LoraConfig"),
        (PeftOptions(options={"init_lora_weights": "nosuch"}), "nosuch"),
        (
            PeftOptions(target_modules=("no_proj",)),
            'no adapter can be made: .*no_proj.*\n  hint: module names or "all-',
        ),
        (PeftOptions(target_modules=("q_proj", "norm")), "no adapter can be made"),
    ],
)
def test_options_that_cannot_work_leave_the_model_as_it_was(make, options, said):
    lm = load(make("llama"))
    keys, before = list(lm.model.state_dict()), logits(lm.model, lm.tokenizer)
    with pytest.raises(UserError, match=said):
        new_adapter(lm, options, seed=0)
    assert (list(lm.model.state_dict()), lm.adapters) == (keys, ())
    assert all(p.requires_grad for p in lm.model.parameters())
    assert torch.equal(logits(lm.model, lm.tokenizer), before)


def test_views_switch_the_module_only_inside_active_even_nested(two):
    said = {}
    for name in ("a", "b", None):
        with two.with_adapter(name).active() as module:
            said[name] = logits(module, two.tokenizer)
    assert not torch.allclose(said["a"], said["b"], atol=1e-3)
    before = _state(two)
    assert before[0] == ["b"]
    assert torch.equal(logits(two.model, two.tokenizer), said["b"])
    a, b, none = two.with_adapter("a"), two.with_adapter("b"), two.with_adapter(None)
    with a.active() as module:
        inside = _state(two)
        with none.active():
            assert torch.equal(logits(module, two.tokenizer), said[None])
            with b.active():
                assert torch.equal(logits(module, two.tokenizer), said["b"])
                with none.active():
                    assert torch.equal(logits(module, two.tokenizer), said[None])
            assert torch.equal(logits(module, two.tokenizer), said[None])
        assert torch.equal(logits(module, two.tokenizer), said["a"])
        assert _state(two) == inside
    assert _state(two) == before


def test_active_restores_what_was_trainable_when_the_body_raises(two):
    for parameter in two.model.parameters():
        parameter.requires_grad_(False)
    two.model.base_model.model.model.norm.weight.requires_grad_(True)
    before = _state(two)
    for name in ("a", None):
        with pytest.raises(ZeroDivisionError), two.with_adapter(name).active():
            raise ZeroDivisionError
        assert _state(two) == before


def test_a_view_shares_the_module_and_has_a_fingerprint_of_its_own(two):
    view = two.with_adapter("a")
    assert view.model is two.model
    assert len({two.fingerprint, view.fingerprint, two.with_adapter(None).fingerprint}) == 3
    assert two.with_adapter("a").fingerprint == view.fingerprint
    view.base_changed()
    assert (two.base_version, view.base_version) == (1, 1)
    with pytest.raises(UserError, match=r"no adapter 'c' in .*\n  hint: adapters: a, b"):
        two.with_adapter("c")


def test_a_view_of_a_plain_model_is_the_model(make):
    lm = load(make("llama"))
    with lm.with_adapter(None).active() as module:
        assert module is lm.model


def test_an_adapter_directory_is_a_model_and_equals_its_base_with_the_adapter(make, tmp_path, monkeypatch):
    base = make("llama")
    save(_loud(new_adapter(load(base), PeftOptions(r=2), seed=0)), tmp_path / "adapter")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    alone, beside = load(tmp_path / "adapter"), load(base, adapter=tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(alone.model, alone.tokenizer), logits(beside.model, beside.tokenizer))
    assert (alone.name, alone.adapters) == (str(base), ("default",))
    assert alone.fingerprint == identity(tmp_path / "adapter")
    assert beside.fingerprint == f"{identity(base)}+{identity(tmp_path / 'adapter')}"
    assert not any(p.requires_grad for p in alone.model.parameters())
    assert not alone.model.training
    monkeypatch.chdir("/")
    assert load(tmp_path / "adapter").fingerprint == alone.fingerprint


def test_a_second_adapter_is_loaded_beside_the_first_and_switched_on(make, tmp_path):
    base = make("llama")
    for name, rank in (("one", 2), ("two", 5)):
        save(_loud(new_adapter(load(base), PeftOptions(r=rank), seed=rank)), tmp_path / name)
    lm = load_adapter(load(tmp_path / "one"), tmp_path / "two", name="second")
    assert lm.adapters == ("default", "second")
    alone = load(tmp_path / "two")
    assert torch.equal(logits(lm.model, lm.tokenizer), logits(alone.model, alone.tokenizer))
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_merging_adds_in_fp32_rounds_once_and_says_that_the_base_changed(make, tmp_path):
    base = make("llama", dtype=torch.bfloat16)
    lm = _loud(new_adapter(load(base, dtype="bfloat16"), PeftOptions(r=2), seed=0), 0.01)
    layer = lm.model.base_model.model.model.layers[1].mlp.down_proj
    exact = layer.base_layer.weight.float() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    )
    view = lm.with_adapter(None)
    done = merged(lm)
    assert torch.equal(done.model.model.layers[1].mlp.down_proj.weight, exact.bfloat16())
    assert {p.dtype for p in done.model.parameters()} == {torch.bfloat16}
    assert (done.base_version, view.base_version, done.adapters) == (1, 1, ())
    assert done.fingerprint not in (lm.fingerprint, None)
    assert done.model.lm_head.weight is done.model.model.embed_tokens.weight


def test_merging_keeps_the_dtype_a_model_runs_in_and_stores_the_one_it_came_in(make, tmp_path):
    lm = merged(_loud(new_adapter(load(make("llama", dtype=torch.bfloat16), dtype="float32"), PeftOptions(), seed=0)))
    assert (lm.model.dtype, lm.dtype) == (torch.float32, torch.bfloat16)
    save(lm, tmp_path / "merged")
    assert load(tmp_path / "merged").dtype == torch.bfloat16


def test_merging_takes_the_view_s_adapter_or_the_named_one(make, tmp_path):
    base = make("llama")
    for name, rank in (("one", 2), ("two", 5)):
        save(_loud(new_adapter(load(base), PeftOptions(r=rank), seed=rank)), tmp_path / name)

    def both():
        return load_adapter(load(tmp_path / "one"), tmp_path / "two", name="second")

    first = load(tmp_path / "one")
    want = logits(first.model, first.tokenizer)
    for done in (merged(both().with_adapter("default")), merged(both(), "default")):
        assert torch.allclose(logits(done.model, done.tokenizer), want, atol=1e-5)
    second = load(tmp_path / "two")
    done = merged(both())
    assert torch.allclose(logits(done.model, done.tokenizer), logits(second.model, second.tokenizer), atol=1e-5)
    with pytest.raises(UserError, match="has no adapter to merge"):
        merged(both().with_adapter(None))
    with pytest.raises(UserError, match="no adapter 'third'"):
        merged(both(), "third")
    with pytest.raises(UserError, match="has no adapter to merge\n  hint: --adapter DIR"):
        merged(load(base))


def test_a_tied_head_with_an_adapter_is_separated_from_the_embeddings_by_merging(make, tmp_path):
    base = make("llama")
    for targets in (("lm_head",), ("embed_tokens",)):
        lm = new_adapter(load(base), PeftOptions(r=2, target_modules=targets), seed=0)
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
        want = logits(lm.model, lm.tokenizer)
        done = merged(lm)
        assert done.model.lm_head.weight is not done.model.model.embed_tokens.weight
        save(done, tmp_path / targets[0])
        for model in (done.model, load(tmp_path / targets[0]).model):
            assert torch.allclose(logits(model, lm.tokenizer), want, atol=1e-5), targets
        assert json.loads((tmp_path / targets[0] / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_merged_model_is_no_base_that_an_adapter_could_name(make, tmp_path):
    lm = merged(new_adapter(load(make("llama")), PeftOptions(r=2), seed=0))
    save(new_adapter(lm, PeftOptions(r=2), seed=0), tmp_path / "on-top")
    with pytest.raises(UserError, match=r"its base model '.*llama \(merged\)' is not there"):
        load(tmp_path / "on-top")


def test_an_adapter_with_a_number_that_is_none_is_not_merged(make):
    lm = new_adapter(load(make("llama")), PeftOptions(r=2), seed=0)
    with torch.no_grad():
        next(p for n, p in lm.model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(UserError, match="the adapter cannot be merged: NaNs detected"):
        merged(lm)


@dataclass
class _TwinConfig(LoraConfig):
    def __post_init__(self):
        super().__post_init__()
        self.peft_type = "TWIN"  # pyright: ignore[reportAttributeAccessIssue]


class _TwinModel(LoraModel):
    pass


def _register_twin() -> None:
    peft.PEFT_TYPE_TO_CONFIG_MAPPING["TWIN"] = _TwinConfig  # pyright: ignore[reportArgumentType]
    peft.PEFT_TYPE_TO_TUNER_MAPPING["TWIN"] = _TwinModel  # pyright: ignore[reportArgumentType]
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING["TWIN"] = "lora_"  # pyright: ignore[reportArgumentType]


def _twin_apply(x: torch.Tensor, tensors: dict[str, torch.Tensor], config: LoraConfig) -> torch.Tensor:
    return x @ tensors["lora_A"].t() @ tensors["lora_B"].t() * (config.lora_alpha / config.r)


TWIN = PeftMethod("twin", _TwinConfig, _register_twin, _twin_apply)


@pytest.fixture
def entry(monkeypatch):
    """Adapter type "twin" from an installed package; gone from peft again afterwards."""
    here = importlib.metadata.EntryPoint("twin", f"{__name__}:TWIN", ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: {"twin": TWIN}[self.name])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [here] if group == ENTRY_POINTS else [])
    yield
    for mapping in (
        peft.PEFT_TYPE_TO_CONFIG_MAPPING, peft.PEFT_TYPE_TO_TUNER_MAPPING, peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):  # fmt: skip
        mapping.pop("TWIN", None)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_type_of_another_package_is_found_by_its_entry_point(make, tmp_path, entry):
    lm = _loud(new_adapter(load(make("llama")), PeftOptions(type="twin", r=2, target_modules=("q_proj",)), seed=0))
    assert isinstance(lm.model.base_model, _TwinModel)
    save(lm, tmp_path / "twin")
    assert json.loads((tmp_path / "twin" / "adapter_config.json").read_text())["peft_type"] == "TWIN"
    peft.PEFT_TYPE_TO_CONFIG_MAPPING.pop("TWIN")  # pyright: ignore[reportCallIssue, reportArgumentType]
    again = load(tmp_path / "twin")
    assert torch.equal(logits(again.model, again.tokenizer), logits(lm.model, lm.tokenizer))
    assert config_class("TWIN") is _TwinConfig


def test_a_type_that_nobody_brings_is_named_with_those_that_are_there(make, entry):
    with pytest.raises(ConfigError, match=r"'triplet' does not work\n  hint: accepted: .*lora.*twin"):
        config_class("triplet")


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch):
    broken = importlib.metadata.EntryPoint("twin", "no_such_package.adapters:TWIN", ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    with pytest.raises(UserError, match=r"no_such_package.adapters:TWIN: the package that brings adapter type 'twin'"):
        config_class("twin")


def test_a_method_s_contribution_is_what_its_layer_adds(make, entry):
    lm = _loud(new_adapter(load(make("llama")), PeftOptions(type="twin", r=2, target_modules=("q_proj",)), seed=0))
    layer = lm.model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    tensors = {"lora_A": layer.lora_A["default"].weight, "lora_B": layer.lora_B["default"].weight}
    added = TWIN.apply(x, tensors, lm.model.peft_config["default"])
    assert torch.allclose(layer(x) - layer.base_layer(x), added, atol=1e-5)


def test_a_type_that_cannot_be_merged_says_so(make, monkeypatch):
    lm = new_adapter(load(make("llama")), PeftOptions(r=2), seed=0)
    layer = lm.model.base_model.model.model.layers[0].mlp.down_proj

    def cannot(**_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(layer, "merge", cannot)
    with pytest.raises(UnsupportedModel, match="lacks a way to be merged into its base\n  hint: keep it as an adapter"):
        merged(lm)
