"""The engine over bases in 8 and 4 bits: the same tokens as transformers' own generate on the same weights."""

import importlib.util
from pathlib import Path

import pytest
import torch

from maypole.engine import Engine, EngineConfig, Request, Sampling, ScoreRequest
from maypole.models import LanguageModel, load, save
from tests.engine.engine_fixtures import hf_greedy, hf_logprobs, lm_of, random_ids, with_adapters

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here: pip install 'maypole[quant]'"
)
KINDS = ("int8", "nf4")
PROMPTS = random_ids([9, 1, 23, 14, 6], seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    save(lm_of("llama", hidden_size=64, intermediate_size=128), path)
    return path


def greedy(engine: Engine, adapter: str | None = None, tokens: int = 12) -> list[list[int]]:
    sampling = Sampling(max_tokens=tokens, temperature=0)
    return [out.token_ids for out in engine.generate([Request(p, sampling, adapter) for p in PROMPTS])]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_generate_on_the_same_weights(base, kind):
    lm = load(base, quantization=kind)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    assert greedy(Engine(lm)) == [hf_greedy(lm.model, p, 12) for p in PROMPTS]
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_head_is_laid_out_anew(base):
    lm = load(base, quantization="nf4")
    head = lm.model.lm_head.weight.nbytes
    assert Engine(lm).stats()["repacked_bytes"] in (0, head)
    assert Engine(lm, EngineConfig(repack_bytes=0)).stats()["repacked_bytes"] == 0


def test_scores_equal_the_plain_ones(base):
    lm = load(base, quantization="nf4")
    (found,) = Engine(lm).score([ScoreRequest(PROMPTS[2], [PROMPTS[3]])])
    torch.testing.assert_close(
        torch.tensor(found[0].logprobs), torch.tensor(hf_logprobs(lm.model, PROMPTS[2], PROMPTS[3])), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_share_a_batch_on_a_quantized_base(base, kind):
    lm = with_adapters(load(base, quantization=kind), "a", "b")
    engine = Engine(lm.with_adapter(None))
    for name in ("a", "b"):
        with lm.with_adapter(name).active() as model:
            assert greedy(engine, name) == [hf_greedy(model, p, 12) for p in PROMPTS]


def test_an_update_from_a_directory_is_held_as_the_base_was(base, tmp_path):
    other = tmp_path / "other"
    save(lm_of("llama", seed=1, hidden_size=64, intermediate_size=128), other)
    engine = Engine.load(base, quantization="nf4")
    engine.update(str(other))
    assert engine.lm.quantization == "nf4"
    assert greedy(engine) == greedy(Engine(load(other, quantization="nf4")))


def test_a_view_of_a_quantized_module_is_still_quantized(base):
    lm: LanguageModel = with_adapters(load(base, quantization="int8"), "a")
    assert lm.with_adapter(None).quantization == "int8"
