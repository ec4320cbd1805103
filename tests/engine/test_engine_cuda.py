"""What the engine says on a GPU is what it says on a CPU: in fp32 the same tokens, the same numbers to 1e-4."""

import asyncio
import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from maypole.engine import NO_ADAPTER, Engine, EngineConfig, Request, Sampling, ScoreRequest
from maypole.engine import partial_attention as partial
from maypole.models.language_model import LanguageModel
from maypole.models.plan import AttentionSpec
from maypole.models.saving import save
from tests.engine.engine_fixtures import hf_greedy, hf_logprobs, lm_of, random_ids, with_adapters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox", "mistral", "gemma2"]


def on_gpu(lm: LanguageModel) -> LanguageModel:
    return replace(lm, model=copy.deepcopy(lm.model).cuda())


def mixed() -> list[list[int]]:
    prefix, *rest = random_ids([40, 1, 5, 9, 30, 70])
    return [*rest, *(prefix + p for p in rest[:3]), prefix, prefix]


def said(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [o.token_ids for o in engine.generate(requests)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers_whatever_the_schedule(family: str):
    lm = lm_of(family)
    prompts = mixed()
    wanted = [hf_greedy(lm.model, p, 16) for p in prompts]
    requests = [Request(p, Sampling(max_tokens=16, temperature=0.0)) for p in prompts]
    theirs = on_gpu(lm)
    per_token = Engine(theirs)._generator().memory.bytes_per_token
    for config in (
        EngineConfig(max_seqs=6, max_batch_tokens=200),
        EngineConfig(max_batch_tokens=7),
        EngineConfig(kv_bytes=per_token * 300, max_batch_tokens=40),
        EngineConfig(deterministic=True, max_seqs=4),
    ):
        outputs = Engine(theirs, config).generate(requests)
        assert [o.token_ids for o in outputs] == wanted, config
        for prompt, output in zip(prompts, outputs):
            error = np.subtract(output.logprobs, hf_logprobs(lm.model, prompt, output.token_ids))
            assert np.abs(error).max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("repack", [0, "1GiB"], ids=["as they stand", "side by side"])
def test_the_fast_path_says_the_same(family: str, repack: int | str):
    lm = lm_of(family)
    engine = Engine(on_gpu(lm), EngineConfig(fast_path=True, repack_bytes=repack))
    assert (engine.stats()["repacked_bytes"] > 0) is (repack != 0)
    requests = [Request(p, GREEDY) for p in mixed()]
    assert said(engine, requests) == said(Engine(lm), requests)


def test_short_memory_makes_the_youngest_start_again_and_nobody_else():
    lm = lm_of("qwen3")
    requests = [Request(p, Sampling(max_tokens=100, temperature=0.0, ignore_eos=True)) for p in random_ids([40] * 6)]
    theirs = on_gpu(lm)
    per_token = Engine(theirs)._generator().memory.bytes_per_token
    engine = Engine(theirs, EngineConfig(kv_bytes=per_token * 64 * 6))
    assert said(engine, requests) == said(Engine(lm), requests)
    assert engine.stats()["preemptions"] > 0


def test_adapters_in_one_batch_say_what_each_says_alone():
    lm = with_adapters(lm_of(), "a", "b")
    engine = Engine(on_gpu(lm))
    names = ["a", "b", NO_ADAPTER, "a", None, "b"]
    requests = [Request(p, GREEDY, adapter=n) for p, n in zip(random_ids([20, 5, 20, 9, 3, 14]), names)]
    wanted = said(Engine(lm), requests)
    assert said(engine, requests) == wanted
    assert [said(engine, [r])[0] for r in requests] == wanted
    alone = Engine(engine.lm, EngineConfig(deterministic=True))
    assert said(alone, requests) == wanted


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_scores_and_vectors_are_those_of_the_cpu(family: str):
    lm = lm_of(family)
    here, there = Engine(lm), Engine(on_gpu(lm))
    context, a, b, c = random_ids([90, 7, 30, 12])
    asked = [ScoreRequest(context, [a, b]), ScoreRequest(context + b, [c, a]), ScoreRequest(None, [c])]
    for ours, theirs in zip(there.score(asked), here.score(asked)):
        for one, other in zip(ours, theirs):
            assert np.abs(np.subtract(one.logprobs, other.logprobs)).max() < 1e-4
            assert one.is_greedy == other.is_greedy
    for pooling in ("last", "mean", "cls"):
        found, wanted = (e.embed([context, a, b], pooling=pooling, layer=1) for e in (there, here))
        assert np.abs(found - wanted).max() < 1e-4


def test_seeded_samples_filters_and_penalties_are_those_of_the_cpu():
    lm = lm_of("qwen2")
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.7, "typical_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 0.4, "logit_bias": {77: 2.0}},
        {"temperature": 1.0, "min_tokens": 8, "logprobs": 3},
    ]
    requests = [
        Request(p, Sampling(max_tokens=12, seed=i, **kind))
        for i, (p, kind) in enumerate(zip(random_ids([3, 12, 7, 40, 5]), kinds))
    ]
    here, there = Engine(lm).generate(requests), Engine(on_gpu(lm)).generate(requests)
    assert [o.token_ids for o in there] == [o.token_ids for o in here]
    for one, other in zip(there, here):
        assert np.abs(np.subtract(one.logprobs, other.logprobs)).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_numbers_are_the_same_to_the_bit_in_any_company(dtype: torch.dtype):
    lm = on_gpu(lm_of("llama"))
    lm.model.to(dtype)
    requests = [
        Request(p, Sampling(max_tokens=50, temperature=0.8, seed=i, ignore_eos=True))
        for i, p in enumerate(random_ids([40, 20, 33, 50, 25]))
    ]
    alone = Engine(lm, EngineConfig(deterministic=True))
    wanted = [(o.token_ids, o.logprobs) for r in requests for o in alone.generate([r])]
    for order in (1, -1):
        found = Engine(lm, EngineConfig(deterministic=True)).generate(requests[::order])[::order]
        assert [(o.token_ids, o.logprobs) for o in found] == wanted


def test_updates_replace_adapters_and_base(tmp_path):
    lm = with_adapters(lm_of(), "default")
    save(lm, tmp_path / "adapter")
    theirs = on_gpu(lm)
    engine = Engine(theirs.with_adapter(None), EngineConfig(fast_path=True))
    engine.update(tmp_path / "adapter", "disk")
    prompt = random_ids([10])[0]
    requests = [Request(prompt, GREEDY, adapter=n) for n in ("disk", NO_ADAPTER)]
    here = Engine(lm)
    assert said(engine, requests) == said(here, [Request(prompt, GREEDY), Request(prompt, GREEDY, adapter=NO_ADAPTER)])
    other = lm_of(seed=1)
    assert engine.update(other.model.state_dict()) == 2
    assert said(engine, requests[1:]) == said(Engine(other), [Request(prompt, GREEDY)])


def test_an_engine_that_loaded_its_model_moves_weights_and_still_tells_them(tmp_path):
    lm = lm_of("qwen2")
    save(lm, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", config=EngineConfig(fast_path=True), device="cuda")
    assert engine.stats()["repacked_bytes"] > 0
    found, wanted = engine.lm.model.state_dict(), lm.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)
    requests = [Request(p, GREEDY) for p in mixed()]
    assert said(engine, requests) == said(Engine(lm), requests)


def test_streams_are_stepped_by_a_thread_of_their_own():
    lm = lm_of()
    engine = Engine(on_gpu(lm))
    requests = [Request(p, GREEDY) for p in random_ids([4, 9, 30])]

    async def all_of_them() -> list[list[int]]:
        async def one(request: Request) -> list[int]:
            return [token async for chunk in engine.stream(request) for token in chunk.token_ids]

        return await asyncio.gather(*map(one, requests))

    assert asyncio.run(all_of_them()) == said(Engine(lm), requests)


def test_half_precision_keeps_its_cache_in_half_precision_and_stays_near():
    lm = lm_of("llama")
    half = on_gpu(lm)
    half.model.to(torch.bfloat16)
    for config in (EngineConfig(), EngineConfig(fast_path=True)):
        engine = Engine(half, config)
        prompts = mixed()
        for prompt, output in zip(prompts, engine.generate([Request(p, GREEDY) for p in prompts])):
            error = np.subtract(output.logprobs, hf_logprobs(lm.model, prompt, output.token_ids))
            assert np.abs(error).max() < 0.5
        assert engine._generator().memory.dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_for_attention_to_some_of_the_keys_is_there_and_right(dtype: torch.dtype):
    assert partial._agrees(torch.device("cuda", 0), dtype)
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 32, generator=draw).cuda() for n in (50, 130, 130))
    seen = torch.arange(130, device="cuda") <= torch.arange(50, device="cuda")[:, None] + 80
    spec = AttentionSpec(layer=0, scaling=0.2)
    found = partial.attend(q.to(dtype), k.to(dtype), v.to(dtype), spec, partial.bias_of(seen, dtype))
    wanted = partial.explicit(q.double(), k.double(), v.double(), spec, partial.bias_of(seen, torch.float64))
    near = 1e-5 if dtype == torch.float32 else 3e-2
    assert all(torch.allclose(f.double(), w, rtol=near, atol=near) for f, w in zip(found, wanted))
