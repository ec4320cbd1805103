"""Whatever adapters share a batch, each request's numbers are those of peft with its adapter alone."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch

from maypole.engine import NO_ADAPTER, Engine, EngineConfig, Request, Sampling, ScoreRequest, lanes
from maypole.engine.adapters import Adapter, Lora
from maypole.models.language_model import LanguageModel
from tests.engine.engine_fixtures import far_from_zero, hf_logprobs, lm_of, random_ids

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
LINEAR = {"llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], "gpt2": ["c_attn", "c_proj", "c_fc"]}


def mixed(family: str) -> LanguageModel:
    """Adapters of many kinds over one base, their weights far from zero."""
    first, *rest = LINEAR[family]
    every = LINEAR[family]
    kinds: dict[str, dict[str, Any]] = {
        "one": {"r": 1, "lora_alpha": 3, "target_modules": [first]},
        "many": {"r": 24, "lora_alpha": 8, "target_modules": every},
        "rs": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": every},
        "some": {"r": 4, "target_modules": every, "layers_to_transform": [1]},
        "pattern": {"r": 4, "lora_alpha": 4, "target_modules": every, "rank_pattern": {first: 2, rest[0]: 7},
                    "alpha_pattern": {first: 9}},
        "bias": {"r": 3, "lora_alpha": 6, "lora_bias": True, "target_modules": rest},
    }  # fmt: skip
    lm = lm_of(family)
    extra: dict[str, Any] = {"fan_in_fan_out": True} if family == "gpt2" else {}
    configs = {name: peft.LoraConfig(task_type="CAUSAL_LM", **kind, **extra) for name, kind in kinds.items()}
    model: Any = None
    for name, config in configs.items():
        if model is None:
            model = peft.get_peft_model(lm.transformer, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return replace(lm, model=far_from_zero(model))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return mixed(request.param)


def scored(engine: Engine, prompts: list[list[int]], names: list[str]) -> list[list[float]]:
    found = engine.score([ScoreRequest(p[:1], [p[1:]], adapter=n) for p, n in zip(prompts, names)])
    return [one.logprobs for (one,) in found]


def expected(lm: LanguageModel, prompt: list[int], name: str) -> list[float]:
    with lm.with_adapter(name or None).active() as model:
        return hf_logprobs(model, prompt[:1], prompt[1:])


@pytest.mark.parametrize("cost", [0, None, 2**60], ids=["each by itself", "as it comes", "all together"])
def test_every_kind_of_lora_in_one_batch_equals_peft_alone(
    lm: LanguageModel, cost: int | None, monkeypatch: pytest.MonkeyPatch
):
    if cost is not None:
        monkeypatch.setitem(lanes.SEGMENT_COST, "cpu", cost)
    names = [*lm.adapters, NO_ADAPTER, "many", "one"]
    prompts = random_ids([9, 30, 4, 17, 8, 12, 6, 5, 21])
    for found, prompt, name in zip(scored(Engine(lm), prompts, names), prompts, names):
        assert np.abs(np.subtract(found, expected(lm, prompt, name))).max() < 1e-5, name


def test_generated_tokens_do_not_depend_on_order_company_or_memory(lm: LanguageModel):
    names = [*lm.adapters, NO_ADAPTER, "many", "rs"]
    requests = [Request(p, GREEDY, adapter=n) for p, n in zip(random_ids([9, 30, 4, 17, 8, 12, 6, 5, 21]), names)]
    wanted = [o.token_ids for r in requests for o in Engine(lm).generate([r])]
    per_token = Engine(lm)._generator().memory.bytes_per_token
    for config in (
        EngineConfig(), EngineConfig(max_batch_tokens=5), EngineConfig(max_seqs=2), EngineConfig(deterministic=True),
        EngineConfig(kv_bytes=per_token * 64 * 3),
    ):  # fmt: skip
        engine = Engine(lm, config)
        assert [o.token_ids for o in engine.generate(requests)] == wanted
        assert [o.token_ids for o in engine.generate(requests[::-1])][::-1] == wanted


def test_an_adapter_equals_its_merged_model():
    lm = mixed("llama")
    prompt = random_ids([20])[0]
    found = scored(Engine(lm), [prompt, prompt], ["pattern", "many"])[0]
    merged = lm.model.merge_and_unload(adapter_names=["pattern"])
    assert np.abs(np.subtract(found, hf_logprobs(merged, prompt[:1], prompt[1:]))).max() < 1e-5


def test_zero_adapters_and_none_equal_the_base_to_the_bit(lm: LanguageModel):
    prompts = random_ids([9, 14, 9])
    engine = Engine(lm)
    state = {k: v for k, v in lm.model.state_dict().items() if ".many." in k}
    engine.update({k: v * 0 if "lora_B" in k else v for k, v in state.items()}, "many")
    alone = scored(engine, prompts, [NO_ADAPTER] * 3)
    assert scored(engine, prompts, ["many"] * 3) == alone
    assert scored(engine, prompts, [NO_ADAPTER, "rs", NO_ADAPTER])[::2] == alone[::2]


def test_deterministic_numbers_with_adapters_are_the_same_to_the_bit_in_any_company(lm: LanguageModel):
    names = [*lm.adapters, NO_ADAPTER]
    prompts = random_ids([9, 30, 4, 17, 8, 12, 6])
    requests = [Request(p, replace(GREEDY, max_tokens=3), adapter=n) for p, n in zip(prompts, names)]
    config = EngineConfig(deterministic=True)
    alone = [(o.token_ids, o.logprobs) for r in requests for o in Engine(lm, config).generate([r])]
    assert [(o.token_ids, o.logprobs) for o in Engine(lm, config).generate(requests)] == alone


def test_another_adapters_infinities_stay_its_own():
    lm = mixed("llama")
    prompts = random_ids([9, 9])
    wanted = scored(Engine(lm), prompts[:1], ["rs"])[0]
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_A.many" in name:
                parameter.fill_(3e38)
    found = scored(Engine(lm), prompts, ["rs", "many"])[0]
    assert np.abs(np.subtract(found, wanted)).max() < 1e-5


def test_stacked_factors_are_kept_while_they_serve_and_never_twice_too_wide():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    made = [
        Adapter(f"a{i}", None, {"0": Lora(torch.randn(2, 6), torch.randn(6, 2), None)}, {}) for i in range(6)
    ]  # fmt: skip
    here = lanes.Lanes(model)
    x = torch.randn(6, 6)

    def stack(*chosen: int) -> Any:
        here.segments = [(made[i], torch.tensor([n])) for n, i in enumerate(chosen)]
        out = torch.zeros(6, 6)
        here.add("0", x, out)
        for n, i in enumerate(chosen):
            assert torch.allclose(out[n], made[i].layers["0"](x[n : n + 1])[0], atol=1e-6)
        return here._stack

    first = stack(0, 1, 2)
    assert stack(2, 1) is first
    assert len(stack(3, 1).members) == 4
    assert len(stack(5).members) == 1
    here.forget(made[5])
    assert here._stack is None


def test_a_step_like_the_last_is_planned_once_and_nothing_is_kept_of_an_adapter_that_left():
    made = [Adapter(f"a{i}", None, {"0": Lora(torch.randn(2, 6), torch.randn(6, 2), None)}, {}) for i in range(3)]
    here = lanes.Lanes(torch.nn.Sequential(torch.nn.Linear(6, 6)))

    def plan(*counts: int) -> Any:
        here.segments = here.segments_of(counts, [*made[:2], None])
        here.add("0", torch.randn(sum(counts), 6), torch.zeros(sum(counts), 6))
        here.segments = ()
        return here._plan

    first = plan(1, 1, 1)
    assert plan(1, 1, 1) is first
    other = plan(1, 2, 1)
    assert other is not first
    assert plan(1, 1, 1) is not first
    left = made.pop(0)
    down = weakref.ref(left.layers["0"].tensors["down"])
    here.forget(left)
    del first, other, left
    gc.collect()
    assert down() is None


@pytest.mark.parametrize("idle", [0, 3], ids=["all tokens", "some of the base"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("few", [0, 9], ids=["by groups", "token by token"])
def test_groups_give_each_token_what_its_adapter_alone_gives(
    idle: int, biased: bool, few: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lanes, "GROUPED", 0)
    monkeypatch.setattr(lanes, "FEW", few)
    torch.manual_seed(0)
    layers = [Lora(torch.randn(2, 6), torch.randn(5, 2), torch.randn(5) if biased else None) for _ in range(4)]
    made = [Adapter(f"a{i}", None, {"0": layer}, {}) for i, layer in enumerate(layers)]
    owners = torch.tensor([2, 0, 1, 2, 3, 0, 2, *[-1] * idle, 1])
    here = lanes.Lanes(torch.nn.Sequential(torch.nn.Linear(6, 5)))
    here.segments = [(one, torch.nonzero(owners == i).squeeze(1)) for i, one in enumerate(made)]
    x, out = torch.randn(len(owners), 6), torch.zeros(len(owners), 5)
    x[1] = float("inf")
    here.add("0", x, out)
    dense: Any = here._plan
    assert dense[0].groups is not None
    for token, owner in enumerate(owners.tolist()):
        if token != 1:
            expected = made[owner].layers["0"](x[token : token + 1])[0] if owner >= 0 else torch.zeros(5)
            assert torch.allclose(out[token], expected, atol=1e-6), token
