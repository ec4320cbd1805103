import copy
from typing import Any

import pytest
import torch
from torch import nn

from maypole.models.norms import fast_norms
from tests.tiny_models import FAMILIES, model_of


def _norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "gpt_neox")])
def test_norms_are_the_same_in_values_and_gradients(family: str):
    model = model_of(family)
    norm = _norms(model)[0]
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(2)))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, len(norm.weight), generator=draw) * torch.logspace(-4, 2, 7)[:, None]
    upstream = torch.randn(x.shape, generator=draw)

    def run() -> list[torch.Tensor]:
        norm.zero_grad()
        given = x.clone().requires_grad_(True)
        out = norm(given)
        out.backward(upstream)
        return [out.detach(), given.grad, norm.weight.grad.clone()]  # type: ignore[list-item]

    wanted = run()
    with fast_norms(model):
        assert all("forward" in vars(norm) for norm in _norms(model))
        found = run()
        with torch.autocast("cpu", torch.bfloat16):
            under = run()
    assert not any("forward" in vars(norm) for norm in _norms(model))
    for ours, alike, exact in zip(found, under, wanted, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alike, ours)


class _OtherRMSNorm(nn.Module):
    """Divides by the norm's square root."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.eps) ** -0.25


def test_what_is_another_norm_or_is_not_in_fp32_stays_as_it_is():
    other = _OtherRMSNorm()
    with fast_norms(other):
        assert "forward" not in vars(other)
    model = model_of("llama")
    low = copy.deepcopy(model).to(torch.bfloat16)
    for given, held in ((torch.bfloat16, model), (torch.bfloat16, low), (torch.float32, low)):
        norm, x = _norms(held)[0], torch.randn(3, held.config.hidden_size).to(given)
        wanted = norm(x)
        with fast_norms(held):
            assert torch.equal(norm(x), wanted)
