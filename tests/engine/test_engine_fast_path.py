"""The fast path computes what the models' own modules compute, whatever the schedule, the adapters and the update."""

import copy
from typing import Any

import pytest
import torch

from maypole.core.errors import ConfigError, UnsupportedModel
from maypole.engine import Engine, EngineConfig, Request, Sampling, ScoreRequest
from maypole.engine.fast_path import FAMILIES, understands
from maypole.models.language_model import LanguageModel
from tests.engine.engine_fixtures import hf_greedy, lm_of, random_ids, with_adapters
from tests.tiny_models import FAMILIES as ALL

FAST, OWN = EngineConfig(fast_path=True), EngineConfig(fast_path=False)
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
MODELS = [
    ("llama", {}),  # tied embeddings, two query heads a key head
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ("mistral", {}),  # a window of six tokens
    ("mistral", {"sliding_window": None, "head_dim": 16, "num_key_value_heads": 4}),
    ("qwen2", {}),  # biases on queries, keys and values alone
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {}),  # norms of queries and keys
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
]


def said(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [o.token_ids for o in engine.generate(requests)]


def scrambled(lm: LanguageModel) -> LanguageModel:
    """Norms and biases away from ones and zeros, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return lm


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_the_fast_path_gives_the_modules_numbers_and_tokens(family: str, changes: dict[str, Any]):
    lm = scrambled(lm_of(family, **changes))
    fast, own = Engine(lm, FAST), Engine(lm, OWN)
    trunk, *ends = random_ids([40, 1, 5, 30, 17])
    prompts = [trunk + ends[0], trunk + ends[1], ends[2], ends[3]]
    assert said(fast, [Request(p, GREEDY) for p in prompts]) == [hf_greedy(lm.model, p, 12) for p in prompts]
    layers = range(-1, len(lm.model.model.layers) + 1)
    for layer in layers:
        found, wanted = (torch.from_numpy(e.embed(prompts, layer=layer, normalize=False)) for e in (fast, own))
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    asked = [ScoreRequest(trunk, [ends[1], ends[2]]), ScoreRequest(ends[3], [ends[0]])]
    for a, b in zip(fast.score(asked), own.score(asked)):
        for one, other in zip(a, b):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
            assert one.is_greedy == other.is_greedy


def test_adapters_contribute_to_the_fast_path_side_by_side():
    lm = with_adapters(lm_of("qwen2"), "a", "b")
    prompts = random_ids([20, 7, 9, 13, 30])
    requests = [Request(p, GREEDY, adapter=n) for p, n in zip(prompts, ("a", "b", "", "a", "b"))]
    assert said(Engine(lm, FAST), requests) == said(Engine(lm, OWN), requests)
    asked = [ScoreRequest(prompts[0], [prompts[1]], adapter=n) for n in ("a", "b")]
    fast, own = (Engine(lm, c).score(asked) for c in (FAST, OWN))
    assert [s[0].logprobs for s in fast] == [pytest.approx(s[0].logprobs, abs=2e-5) for s in own]


def test_after_an_update_the_fast_path_runs_on_the_new_weights():
    old, new = lm_of("mistral", 0), lm_of("mistral", 1)
    prompt = random_ids([9])[0]
    engine = Engine(old, FAST)
    assert said(engine, [Request(prompt, GREEDY)]) == [hf_greedy(old.model, prompt, 12)]
    for source in (new, old, new.model.state_dict()):
        engine.update(source)
        wanted = old.model if source is old else new.model
        assert said(engine, [Request(prompt, GREEDY)]) == [hf_greedy(wanted, prompt, 12)]


def test_it_is_chosen_for_families_it_understands_and_refused_for_others():
    assert {family for family in ALL if understands(lm_of(family).model)} == set(FAMILIES)
    with pytest.raises(UnsupportedModel, match=r"gpt2.*fast path"):
        Engine(lm_of("gpt2"), FAST)
    with pytest.raises(ConfigError, match="--fast-path"):
        EngineConfig(fast_path="on")  # type: ignore[arg-type]


def test_blocks_that_are_not_transformers_own_are_left_to_their_own_code():
    lm = lm_of("llama")
    lm.model.model.layers[1].mlp.down_proj = type("Scaled", (torch.nn.Linear,), {})(48, 32, bias=False)
    assert not understands(lm.model)
    wanted = hf_greedy(lm.model, [5, 6, 7], 12)
    assert said(Engine(lm), [Request([5, 6, 7], GREEDY)]) == [wanted]


def test_without_bytes_for_repacking_it_multiplies_by_the_weights_as_they_stand():
    lm = lm_of("llama")
    engine = Engine(lm, EngineConfig(fast_path=True, repack_bytes=0))
    assert engine.stats()["repacked_bytes"] == 0
    before = copy.deepcopy(lm.model.state_dict())
    prompt = random_ids([11])[0]
    assert said(engine, [Request(prompt, GREEDY)]) == [hf_greedy(lm.model, prompt, 12)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
