"""Adapters merged for one request: peft's numbers, in one batch with others, and never a base or an adapter changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from maypole.core.errors import ConfigError, UnsupportedCapability, UserError
from maypole.engine import (
    NO_ADAPTER,
    Engine,
    EngineConfig,
    Merged,
    RemoteEngine,
    Request,
    Sampling,
    ScoreRequest,
    adapter_store,
)
from maypole.engine.adapters import Adapter, Lora
from maypole.engine.merging import merge
from maypole.engine.request import Target
from maypole.models.language_model import LanguageModel
from maypole.models.saving import save
from tests.engine.adapter_fixtures import engine_of, folder_of, step_until_done, submitted
from tests.engine.engine_fixtures import far_from_zero, hf_logprobs, lm_of, random_ids

GREEDY = Sampling(max_tokens=5, temperature=0.0, ignore_eos=True)
WEIGHTS = [0.7, -0.4]


def adapted(family: str = "llama", **kinds: dict[str, Any]) -> LanguageModel:
    lm, model = lm_of(family), None
    for name, kind in kinds.items():
        options: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **kind}
        config = peft.LoraConfig(**options)
        if model is None:
            model = peft.get_peft_model(lm.transformer, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return replace(lm, model=far_from_zero(model))


@pytest.fixture
def lm() -> LanguageModel:
    """Two adapters of a kind with other scales and layers, and one of another rank."""
    return adapted(
        a={"r": 4, "lora_alpha": 8},
        b={"r": 4, "lora_alpha": 2, "target_modules": ["q_proj", "down_proj"]},
        wide={"r": 7, "lora_alpha": 7},
    )


def scored(engine: Engine, prompts: list[list[int]], targets: list[Target]) -> list[list[float]]:
    found = engine.score([ScoreRequest(p[:1], [p[1:]], adapter=t) for p, t in zip(prompts, targets)])
    return [one.logprobs for (one,) in found]


def by_peft(lm: LanguageModel, prompt: list[int], names: list[str], weights: list[float], **how: Any) -> list[float]:
    """Log-probs under peft's own merged adapter, which is taken away again."""
    lm.model.add_weighted_adapter(names, weights, "merged", **how)
    try:
        with lm.with_adapter("merged").active() as model:
            return hf_logprobs(model, prompt[:1], prompt[1:])
    finally:
        lm.model.delete_adapter("merged")


@pytest.mark.parametrize("names", [["a", "b"], ["b", "wide", "a"], ["a", "a"]])
def test_cat_is_the_weighted_sum_of_the_adapters_changes(lm: LanguageModel, names: list[str]):
    weights = [0.7, -0.4, 1.3][: len(names)]
    prompt = random_ids([20])[0]
    (found,) = scored(Engine(lm), [prompt], [Merged(names, weights)])
    if len(set(names)) == len(names):
        assert np.abs(np.subtract(found, by_peft(lm, prompt, names, weights, combination_type="cat"))).max() < 1e-5
    with torch.no_grad():
        for name, module in lm.model.named_modules():
            if hasattr(module, "lora_A") and name:
                for adapter, weight in zip(names, weights):
                    if adapter in module.lora_A:
                        module.base_layer.weight += weight * module.get_delta_weight(adapter)
    with lm.with_adapter(None).active() as model:
        assert np.abs(np.subtract(found, hf_logprobs(model, prompt[:1], prompt[1:]))).max() < 1e-5


@pytest.mark.parametrize(
    "how",
    [
        {"combination": "linear"},
        {"combination": "ties"},
        {"combination": "ties", "density": 0.4},
        {"combination": "ties", "density": 0.4, "majority_sign_method": "frequency"},
    ],
)
def test_the_other_combinations_are_pefts(lm: LanguageModel, how: dict[str, Any]):
    prompt = random_ids([20])[0]
    settings = {"density": 1.0, **how}
    expected = by_peft(lm, prompt, ["a", "b"], WEIGHTS, combination_type=settings.pop("combination"), **settings)
    (found,) = scored(Engine(lm), [prompt], [Merged(["a", "b"], WEIGHTS, **how)])
    assert np.abs(np.subtract(found, expected)).max() < 1e-5


def test_merged_adapters_share_a_batch_with_their_parts_and_each_has_a_prefix_of_its_own(lm: LanguageModel):
    engine = Engine(lm)
    prompt = random_ids([40])[0]
    targets: list[Target] = [
        "a", Merged(["a", "b"]), Merged(["a", "b"], [0.5, 2.0]), Merged(["a", "b"], combination="linear"), "b",
        NO_ADAPTER, Merged(["wide", "b"]),
    ]  # fmt: skip
    requests = [Request(prompt, GREEDY, adapter=t) for t in targets]
    together = engine.generate(requests)
    assert [o.usage.cached_tokens for o in together] == [0] * len(targets)
    assert [o.token_ids for o in together] == [Engine(lm).generate([r])[0].token_ids for r in requests]
    assert len({tuple(o.token_ids) for o in together}) == len(targets)
    again = engine.generate([Request(prompt, GREEDY, adapter=t) for t in reversed(targets)])
    assert [o.token_ids for o in reversed(again)] == [o.token_ids for o in together]
    assert all(o.usage.cached_tokens for o in again)


def test_one_adapter_of_weight_one_is_that_adapter(lm: LanguageModel):
    prompt = random_ids([20])[0]
    targets: list[Target] = ["a", Merged(["a"]), Merged(["a"], combination="linear"), Merged(["a"], combination="ties")]
    plain, *others = scored(Engine(lm), [prompt] * 4, targets)
    for other in others:
        assert np.abs(np.subtract(plain, other)).max() < 1e-5


def pair() -> list[Adapter]:
    generator = torch.Generator().manual_seed(3)

    def lora() -> Lora:
        return Lora(torch.randn(3, 6, generator=generator), torch.randn(5, 3, generator=generator), None, 2.0)

    return [Adapter(name, None, {"0": lora()}, {}) for name in ("a", "b")]


def factors(parts: list[Adapter], **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    layer: Any = merge(Merged(["a", "b"], WEIGHTS, **how), parts, "here").layers["0"]
    return layer.down, layer.up


def test_dare_that_keeps_all_is_plain_and_otherwise_right_on_average():
    parts = pair()
    for kind in ("linear", "ties"):
        for dare, plain in zip(factors(parts, combination=f"dare_{kind}"), factors(parts, combination=kind)):
            assert torch.equal(dare, plain)
    drawn = [factors(parts, combination="dare_linear", density=0.5, seed=seed) for seed in range(200)]
    for side, plain in enumerate(factors(parts, combination="linear")):
        every = torch.stack([found[side] for found in drawn])
        error = (every.mean(dim=0) - plain) / (every.std(dim=0) / 200**0.5)
        assert error.abs().max() < 4.5
    first, again, other = (factors(parts, combination="dare_ties", density=0.5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_new_member_makes_a_new_merged_adapter_and_running_requests_end_on_the_old(lm: LanguageModel):
    request = Request(random_ids([8])[0], GREEDY, adapter=Merged(["b", "a"]))
    engine = Engine(lm, EngineConfig(max_seqs=1))
    old = engine.generate([request])[0]
    state = {k.replace(".a.", "."): v for k, v in lm.model.state_dict().items() if ".lora_" in k and ".a." in k}
    new = {k: -v if "lora_A" in k else v for k, v in state.items()}
    sequences = submitted(engine, [request, request])
    for _ in range(3):
        engine._step()
    assert engine.update(new, "a") == 1
    step_until_done(engine, sequences)
    running, waiting = (s.output for s in sequences)
    assert running
    assert waiting
    assert (running.token_ids, running.version) == (old.token_ids, 0)
    assert waiting.version == engine.version > 0
    fresh = Engine(lm)
    fresh.update(new, "a")
    assert waiting.token_ids == fresh.generate([request])[0].token_ids != old.token_ids
    sequences = submitted(engine, [request])
    engine._step()
    engine.update(new, "a", mode="abort")
    step_until_done(engine, sequences)
    assert sequences[0].output
    assert sequences[0].output.finish_reason == "update"


def test_a_member_that_no_longer_fits_ends_its_own_requests_alone(lm: LanguageModel, tmp_path: Path):
    save(lm.with_adapter("wide"), tmp_path / "wide")
    engine = Engine(lm, EngineConfig(max_seqs=1))
    targets: list[Target] = ["a", Merged(["a", "b"], combination="linear"), "b"]
    sequences = submitted(engine, [Request([5, 6, 7], GREEDY, adapter=t) for t in targets])
    engine._step()
    engine.update(tmp_path / "wide", "a")
    step_until_done(engine, sequences)
    assert [s.error is None for s in sequences] == [True, False, True]
    assert "equal ranks" in str(sequences[1].error)


def test_members_are_read_from_their_folder_for_the_merge_and_again_when_they_are_written_again(
    lm: LanguageModel, tmp_path: Path
):
    folder = folder_of(tmp_path / "land", lm, "a", "b")
    merged = Merged(["a", "b"], [0.5, 2.0])
    request = Request(random_ids([8])[0], GREEDY, adapter=merged)
    engine = engine_of(folder)
    assert engine.generate([request])[0].token_ids == Engine(lm).generate([request])[0].token_ids
    assert [status.state for status in engine.adapters.list()] == ["disk", "disk"]
    folder_of(tmp_path / "other", lm, "wide")
    for file in (tmp_path / "other" / "wide").iterdir():
        file.replace(folder / "a" / file.name)
    after = engine.generate([request])[0]
    same = replace(request, adapter=replace(merged, adapters=["wide", "b"]))
    assert after.token_ids == Engine(lm).generate([same])[0].token_ids
    assert after.version > 0


def test_who_is_taken_away_is_merged_no_more_and_those_who_asked_before_are_answered(lm: LanguageModel):
    engine = Engine(lm, EngineConfig(max_seqs=1))
    request = Request([5, 6, 7], GREEDY, adapter=Merged(["a", "b"]))
    sequences = submitted(engine, [Request([5, 6, 7], GREEDY, adapter="b"), request])
    engine._step()
    engine.adapters.remove("a")
    with pytest.raises(UserError, match="no adapter 'a'"):
        engine.generate([request])
    step_until_done(engine, sequences)
    assert sequences[1].output
    assert sequences[1].output.token_ids == Engine(lm).generate([request])[0].token_ids
    engine.adapters.reap()
    assert not [target for target in engine.adapters._entries if isinstance(target, Merged)]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"adapters": "ab"}, "adapters"),
        ({"adapters": []}, "adapters"),
        ({"adapters": ["a", ""]}, "adapters"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": [1.0, float("nan")]}, "weights"),
        ({"weights": ["1", "2"]}, "weights"),
        ({"combination": "svd"}, "combination"),
        ({"combination": "ties", "density": 0.0}, "density"),
        ({"combination": "ties", "density": 1.2}, "density"),
        ({"density": 0.5}, "density"),
        ({"majority_sign_method": "all"}, "majority-sign-method"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_its_field(wrong: dict[str, Any], field: str):
    with pytest.raises(ConfigError, match=f"--{field}"):
        Merged(**{"adapters": ["a", "b"], **wrong})


def test_what_cannot_be_merged_is_refused(lm: LanguageModel):
    engine = Engine(lm)
    with pytest.raises(UserError, match="request 1: adapters: no adapter 'none'"):
        engine.generate([Request("a"), Request("a", adapter=Merged(["a", "none"]))])
    for combination in ("linear", "ties", "dare_linear", "dare_ties"):
        with pytest.raises(UserError, match=r"adapter 'a\+wide': combination: .* needs equal ranks.* 4, 7"):
            engine.generate([Request("a", adapter=Merged(["a", "wide"], combination=combination))])
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0
    part = Adapter("odd", None, {"0": pair()[0].layers["0"]}, {"score.weight": torch.zeros(1)})
    with pytest.raises(UnsupportedCapability, match="'odd' cannot be merged"):
        merge(Merged(["odd"]), [part], "here")


def test_merged_adapters_are_no_models_and_the_longest_unused_are_forgotten(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adapter_store, "MERGES", 2)
    engine = Engine(lm)
    wanted = [Merged(["a", "b"], [1.0, weight]) for weight in (1.0, 2.0, 3.0)]
    for merged in (wanted[0], wanted[1], wanted[0], wanted[2]):
        engine.generate([Request([5, 6, 7], GREEDY, adapter=merged)])
    engine.adapters.reap()
    assert [*engine.adapters] == ["a", "b", "wide"]
    assert [t for t in engine.adapters._entries if isinstance(t, Merged)] == [wanted[0], wanted[2]]
    assert engine.adapters.stats()["active"] == 5


def test_an_endpoint_is_asked_for_no_merged_adapter():
    import httpx

    models = {"data": [{"id": "a", "owned_by": "maypole"}]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=models))
    with (
        RemoteEngine("http://there", transport=transport) as far,
        pytest.raises(UnsupportedCapability, match="merges no adapters"),
    ):
        far.generate([Request("a", adapter=Merged(["a"]))])
