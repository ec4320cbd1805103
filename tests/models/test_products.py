"""Products by oneDNN are those of torch, forward and backward, and are left alone where they do not apply."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from maypole.models import products
from maypole.models.products import fast_products, product


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that oneDNN was asked for."""
    assert products.agrees(torch.float32)  # which asks oneDNN once
    shapes: list[tuple[int, ...]] = []
    real = products._by_onednn

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        shapes.append((*x.shape, *weight.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_by_onednn", noted)
    return shapes


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(out: torch.Tensor, *of: Any) -> list[torch.Tensor]:
    upstream = drawn(*out.shape, seed=9).detach()
    return [out, *torch.autograd.grad(out, [t for t in of if t is not None], upstream)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(f.shape == w.shape and (f - w).abs().max() <= 1e-5 * w.abs().max() for f, w in zip(found, wanted))


@pytest.mark.parametrize("rows", [(123,), (1, 123), (3, 41)])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(96, 200), nn.Linear(200, 96), nn.Linear(96, 200, bias=False), Conv1D(200, 96), Conv1D(96, 200)],
    ids=str,
)
def test_linear_layers_and_their_gradients_are_torchs(rows: tuple[int, ...], layer: Any, used: list[tuple[int, ...]]):
    d_in = layer.nx if isinstance(layer, Conv1D) else layer.in_features
    x, parameters = drawn(*rows, d_in), [*layer.parameters()]
    wanted = gradients(layer(x), x, *parameters)
    assert not used
    with fast_products(layer):
        found = gradients(layer(x), x, *parameters)
    assert len(used) == 3
    assert close(found, wanted)
    layer(x)
    assert len(used) == 3


def test_a_row_is_the_same_beside_any_number_of_rows():
    x, layer = drawn(300, 96).detach(), nn.Linear(96, 200)
    with torch.no_grad(), fast_products(layer):
        whole = layer(x)
        assert all(torch.equal(layer(x[:n]), whole[:n]) for n in (2, 3, 8, 31, 64, 299))


def test_what_needs_no_gradient_is_not_multiplied(used: list[tuple[int, ...]]):
    x, layer = drawn(123, 96), nn.Linear(96, 200).requires_grad_(False)
    with fast_products(layer):
        layer(x).sum().backward()
        assert len(used) == 2
        with torch.no_grad():
            assert layer(x).grad_fn is None
    assert x.grad is not None


@pytest.mark.parametrize("other", ["bf16", "float64", "autocast", "small", "missing"])
def test_elsewhere_torch_multiplies(other: str, used: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch):
    x, layer = drawn(123, 96).detach(), nn.Linear(96, 200)
    if other == "missing":
        monkeypatch.setattr(products, "agrees", lambda dtype: False)
    if other == "small":
        layer = nn.Linear(96, 20)
    if other in ("bf16", "float64"):
        dtype = torch.bfloat16 if other == "bf16" else torch.float64
        x, layer = x.to(dtype), layer.to(dtype)
    wanted = layer(x)
    with fast_products(layer), torch.autocast("cpu", torch.bfloat16, enabled=other == "autocast"):
        found = layer(x)
    assert not used
    if other == "autocast":
        assert found.dtype == torch.bfloat16
    else:
        assert torch.equal(found, wanted)
        assert torch.equal(product(x, layer.weight), x @ layer.weight.t())


def test_checkpointed_and_nested_it_is_the_same(used: list[tuple[int, ...]]):
    x, model = drawn(123, 96), nn.Sequential(nn.Linear(96, 200), nn.Tanh())
    wanted = gradients(model(x), x, *model.parameters())
    with fast_products(model):
        with fast_products(model):
            pass
        found = gradients(checkpoint(model, x, use_reentrant=False), x, *model.parameters())
    assert len(used) == 4
    assert close(found, wanted)
    assert "forward" not in vars(model[0])
