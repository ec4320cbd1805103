"""What memory allows at a time, and how often one looks or saves, never changes what is learnt."""

import numpy as np
import pytest
import torch

from maypole.train import Segment, fit
from tests.tiny_models import model_of
from tests.train.train_fixtures import (
    Trees,
    TwoPassTrees,
    config,
    ids_of,
    lines_of,
    lm_with,
    tree_rows,
    weights_of,
)


def texts(count: int = 40) -> list[Segment]:
    made = []
    for i in range(count):
        length = 3 + int(np.random.default_rng(i).integers(90))
        weights = np.random.default_rng(i).choice([0.0, 1.0, 0.25], length).tolist()
        made.append(Segment(ids_of(length, i), [*weights[:-1], 1.0]))
    return made


def trained(tmp_path, name: str, family: str = "llama", objective=None, **changes) -> dict[str, torch.Tensor]:
    lm = lm_with(model_of(family))
    wanted = config(**{"examples_per_step": 10, "learning_rate": 1e-3, **changes})
    fit(lm, tree_rows(texts()), objective or Trees(), wanted, out=tmp_path / name)
    return weights_of(lm)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights; an entry moves by up to 5e-3 in these five steps."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_weights_do_not_depend_on_tokens_per_batch_or_checkpointing(tmp_path, family: str):
    whole = trained(tmp_path, "whole", family, tokens_per_batch=10**6)
    for name, changes in {
        "512": {"tokens_per_batch": 512},
        "64": {"tokens_per_batch": 64},
        "recomputed": {"tokens_per_batch": 512, "gradient_checkpointing": True},
    }.items():
        assert apart(trained(tmp_path, name, family, **changes), whole) < 1e-6, name
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("whole", "64")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_weights_and_lines_do_not_depend_on_logging_saving_and_evaluating(tmp_path):
    often = trained(tmp_path, "often", save_steps=1, logging_steps=1)
    rarely = trained(tmp_path, "rarely", save_steps=1000, logging_steps=3)
    assert all(torch.equal(often[name], rarely[name]) for name in often)
    first, second = lines_of(tmp_path / "often"), lines_of(tmp_path / "rarely")
    assert [line["step"] for line in second] == [1, 3]
    assert second[1]["loss"] == pytest.approx((first[1]["loss"] + first[2]["loss"]) / 2, rel=1e-12)


def test_one_denominator_per_step_is_exactly_the_weighted_mean_over_the_step(tmp_path):
    """Against one batch, one backward and one AdamW step by hand."""
    lm, by_hand = lm_with(model_of("llama")), model_of("llama")
    rows = tree_rows(texts(10))
    wanted = config(examples_per_step=10, max_steps=1, tokens_per_batch=60, max_grad_norm=0.0, learning_rate=1e-3)
    fit(lm, rows, Trees(), wanted, out=tmp_path / "a")
    total, weight = torch.zeros(()), 0.0
    for tree in texts(10):
        logps = torch.log_softmax(by_hand(torch.tensor([tree.ids])).logits[0], -1)
        picked = logps[:-1].gather(1, torch.tensor(tree.ids)[1:, None])[:, 0]
        total = total - (picked * torch.tensor(tree.weights)[1:]).sum()
        weight += sum(tree.weights[1:])
    (total / weight).backward()
    assert lines_of(tmp_path / "a")[0]["loss"] == pytest.approx(float(total.detach()) / weight, rel=1e-6)
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1e9)
    assert lines_of(tmp_path / "a")[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    # Adam's first step is the sign of the gradient, so the weights moved by one learning rate each.
    pairs = zip(lm.model.parameters(), by_hand.parameters())
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) == pytest.approx(1e-3, rel=1e-3)


def test_clipping_scales_the_gradient_to_the_norm_asked_for(tmp_path):
    """A huge epsilon makes Adam's step proportional to the gradient, and then to the norm it is clipped to."""
    falls = {}
    for norm in (0.0, 1e-3, 1e6):
        trained(tmp_path, str(norm), max_grad_norm=norm, adam_epsilon=1e3, max_steps=2, examples_per_step=40,
                learning_rate=10.0, lr_scheduler_type="constant")  # fmt: skip
        first, second = lines_of(tmp_path / str(norm))
        falls[norm] = (first["loss"] - second["loss"]) / first["grad_norm"]
    assert falls[0.0] == falls[1e6]
    assert 0 < falls[1e-3] < falls[0.0]
    clipped = 1e-3 / lines_of(tmp_path / "0.0")[0]["grad_norm"]
    assert falls[1e-3] == pytest.approx(clipped * falls[0.0], rel=0.05)


def test_the_two_heads_train_alike(tmp_path):
    assert apart(trained(tmp_path, "a"), trained(tmp_path, "b", objective=TwoPassTrees())) < 1e-6
