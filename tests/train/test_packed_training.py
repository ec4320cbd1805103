"""Packed training is the plain one: values, every gradient, and nothing leaks from one document to another."""

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maypole.models.attention import packed_execution
from maypole.train import Segment
from maypole.train.batch import pack
from maypole.train.reference import ReferenceLogps
from maypole.train.step import loss_of
from tests.tiny_models import FAMILIES, MIXTURES, model_of
from tests.train.train_fixtures import (
    Trees,
    TwoPassTrees,
    context,
    farthest,
    ids_of,
    leaf,
    lm_with,
    passed,
    store_of,
    tree_rows,
)

LENGTHS = (12, 2, 30, 7, 19, 300)


def documents(lengths: tuple[int, ...] = LENGTHS) -> list[Segment]:
    """Texts with weights of all sizes, some of them zero; each scores at least its last token."""
    made = []
    for i, length in enumerate(lengths):
        weights = np.random.default_rng(i).choice([0.0, 1.0, 0.5], length).tolist()
        made.append(Segment(ids_of(length, 10 + i), [*weights[:-1], 1.0]))
    return made


def plain(lm, trees: list[Segment]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by transformers' own forward, one padded batch, full logits, F.cross_entropy."""
    lm.model.zero_grad()
    longest = max(len(t.ids) for t in trees)
    ids = torch.tensor([t.ids + [0] * (longest - len(t.ids)) for t in trees])
    mask = torch.tensor([[1] * len(t.ids) + [0] * (longest - len(t.ids)) for t in trees])
    weights = torch.tensor([t.weights + [0.0] * (longest - len(t.ids)) for t in trees])
    logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1)
    loss = (losses * weights[:, 1:]).sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}


class _Wide:
    """The module `torch` with one name changed."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def double_everywhere(monkeypatch):
    """transformers computes norms and softmax in fp32 whatever the model is in; here they follow the model."""
    narrow = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t))

    def widen(model: Any) -> Any:
        monkeypatch.setattr(sys.modules[type(model).__module__], "torch", _Wide())
        return model.double()

    return widen


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_and_one_by_one_in_loss_and_every_gradient(
    family: str, dtype: torch.dtype, bound: float, double_everywhere
):
    model = model_of(family)
    lm = lm_with(double_everywhere(model) if dtype == torch.float64 else model)
    trees = documents()
    rows = tree_rows(trees)
    loss, gradients = passed(lm, rows, Trees())
    for other_loss, other in (plain(lm, trees), passed(lm, rows, Trees(), together=False)):
        assert loss == pytest.approx(other_loss, rel=bound)
        assert farthest(gradients, other) < bound


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_train_packed_as_padded(family: str):
    """Their grouped product knows no fp64."""
    lm, trees = lm_with(model_of(family)), documents()
    loss, gradients = passed(lm, tree_rows(trees), Trees())
    other_loss, other = plain(lm, trees)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert farthest(gradients, other) < 1e-5


def test_the_order_of_documents_in_a_pack_changes_nothing():
    lm = lm_with(model_of("gpt2").double())
    rows = tree_rows(documents())
    loss, gradients = passed(lm, rows, Trees())
    shuffled, other = passed(lm, rows, Trees(), order=[3, 5, 0, 4, 1, 2])
    assert loss == pytest.approx(shuffled, rel=1e-12)
    assert farthest(gradients, other) < 1e-10


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_one_pass_head_gives_the_loss_and_gradients_of_the_two_pass_one(family: str, double_everywhere):
    lm = lm_with(double_everywhere(model_of(family)))
    rows = tree_rows([*documents(), context(ids_of(9, 1), leaf(ids_of(5, 2), "a"), leaf(ids_of(8, 3), "b", 0.25))])
    loss, gradients = passed(lm, rows, Trees())
    again, other = passed(lm, rows, TwoPassTrees())
    assert loss == pytest.approx(again, rel=1e-12)
    assert farthest(gradients, other) < 1e-10


def logps(lm, trees: list[Segment]) -> list[torch.Tensor]:
    """Log-probs of the scored tokens of every segment of one packed batch."""
    store = store_of(tree_rows(trees), Trees(), lm)
    batch = pack(store, np.arange(len(store)))
    scored = ReferenceLogps(lm, "fp32", None)._compute(batch)
    return [scored[batch.segment == s] for s in range(len(batch.names))]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox"])
def test_a_document_never_sees_another(family: str):
    lm = lm_with(model_of(family))
    before = logps(lm, [leaf(ids_of(20, 1)), leaf(ids_of(33, 2)), leaf(ids_of(20, 3))])
    after = logps(lm, [leaf(ids_of(20, 1)), leaf(ids_of(33, 4)), leaf(ids_of(20, 3))])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_an_answer_never_sees_its_sibling_and_always_its_prompt(family: str):
    lm = lm_with(model_of(family))

    def answers(prompt: int, chosen: int) -> list[torch.Tensor]:
        return logps(lm, [context(ids_of(9, prompt), leaf(ids_of(6, chosen)), leaf(ids_of(6, 3)))])

    before, other_sibling, other_prompt = answers(1, 2), answers(1, 4), answers(5, 2)
    assert torch.equal(before[2], other_sibling[2])
    assert not torch.allclose(before[1], other_sibling[1])
    assert not torch.allclose(before[1], other_prompt[1])
    assert not torch.allclose(before[2], other_prompt[2])


def test_a_batch_without_any_scored_token_has_no_loss_and_no_nan():
    lm = lm_with(model_of("llama"))
    store = store_of(tree_rows(documents()), Trees(), lm)
    batch = pack(store, np.array([0, 1]))
    scored = ("slot", "source", "target", "weights", "token", "segment")
    empty = replace(batch, **{name: getattr(batch, name)[:0] for name in scored})
    for objective in (Trees(), TwoPassTrees()):
        lm.model.zero_grad()
        with packed_execution(lm.model):
            loss = loss_of(lm.model, empty, objective, tree_rows(documents()), np.array([0, 1]), None, Counter())
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert all(torch.isfinite(p.grad).all() for p in lm.model.parameters() if p.grad is not None)
