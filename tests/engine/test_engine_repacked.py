"""Repacked weights multiply as the weights do, stay within their bytes, and are the engine's own affair."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.engine import repacked as packing
from tests.engine.engine_fixtures import lm_of

GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_in", "d_out"), [(17, 33), (64, 1), (320, 4097)])
def test_a_repacked_product_is_the_linear_layers(d_in: int, d_out: int, dtype: torch.dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(d_out, d_in).to(dtype) / d_in**0.5, torch.randn(d_out).to(dtype)
    for b in (None, bias):
        product = packing.repacked(weight, b)
        assert product is not None, "this build of torch has no oneDNN product"
        for shape in ((1, d_in), (2, d_in), (7, d_in), (2, 3, d_in)):
            x = torch.randn(*shape).to(dtype)
            near = 2e-6 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(product(x), F.linear(x, weight, b), rtol=near, atol=near)


def test_layers_of_one_input_become_one_product():
    torch.manual_seed(0)
    layers = nn.Linear(16, 24), nn.Linear(16, 5, bias=False), Conv1D(7, 16)
    product = packing.Repacker(2**20).product(*layers)
    assert product is not None
    for rows in (1, 9):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(product(x), torch.cat([layer(x) for layer in layers], dim=-1), rtol=1e-5, atol=1e-5)


def test_layers_are_repacked_while_their_bytes_last_and_keep_their_parameters():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    before = {name: id(p) for name, p in module.named_parameters()}
    repacker = packing.Repacker(2 * 8 * 8 * 4)
    repacker.repack(module)
    assert repacker.bytes == 2 * 8 * 8 * 4
    assert ["forward" in layer.__dict__ for layer in module] == [True, True, False]
    assert {name: id(p) for name, p in module.named_parameters()} == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_an_engine_without_the_product_says_the_same(family: str, monkeypatch: pytest.MonkeyPatch):
    lm = lm_of(family)
    requests = [Request([5, 6, 7, 8 + i], GREEDY) for i in range(3)]
    wanted = Engine(lm).generate(requests)
    none = Engine(lm, EngineConfig(repack_bytes=0))
    monkeypatch.setattr(packing, "agrees", lambda dtype: False)
    missing = Engine(lm)
    assert (none.stats()["repacked_bytes"], missing.stats()["repacked_bytes"]) == (0, 0)
    for engine in (none, missing):
        for a, b in zip(engine.generate(requests), wanted):
            assert a.token_ids == b.token_ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
