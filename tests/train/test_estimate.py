"""What is said before the first step, and what is decided from it."""

import numpy as np
import pytest
import torch

from maypole.core.progress import set_quiet
from maypole.models.peft_options import PeftOptions
from maypole.train import estimate as estimating
from maypole.train import fit
from maypole.train.estimate import estimate, peak_memory, trial
from maypole.train.source import Source
from maypole.train.trainable import make_trainable
from tests.tiny_models import model_of
from tests.train.train_fixtures import Preferences, Trees, config, context, ids_of, leaf, lm_with, tree_rows

PLAN = {"precision": "fp32", "tokens_per_batch": 4096, "gradient_checkpointing": False, "steps": 5}


def source_of(lm, trees, tmp_path, objective=None, **changes) -> Source:
    make_trainable(lm, config(**changes), 0, tmp_path)
    return Source(tree_rows(trees), objective or Trees(), lm, config(**changes), seed=0, folder=tmp_path)


def test_ratios_are_those_of_the_rows(tmp_path):
    lm = lm_with(model_of("llama"))
    pair = context(ids_of(10, 0), leaf(ids_of(5, 1), "a"), leaf(ids_of(5, 2), "b"))
    source = source_of(lm, [pair] * 8, tmp_path, Preferences())
    found = estimate(lm, source, PLAN)
    assert found.sharing_ratio == pytest.approx(30 / 20)
    assert found.padding_ratio == 1.0
    assert found.tokens == 20 * 4 * 5
    mixed = source_of(lm, [leaf(ids_of(n, n)) for n in (4, 8, 20, 40)], tmp_path)
    assert estimate(lm, mixed, PLAN).padding_ratio == pytest.approx(4 * 40 / 72)


def test_only_what_learns_is_counted_and_costs_gradients_and_moments(tmp_path):
    trees = [leaf(ids_of(30, i)) for i in range(8)]
    whole, adapted = lm_with(model_of("llama")), lm_with(model_of("llama"))
    everything = estimate(whole, source_of(whole, trees, tmp_path), PLAN)
    few = estimate(adapted, source_of(adapted, trees, tmp_path, peft=PeftOptions(r=2)), PLAN)
    assert everything.trainable == everything.parameters == sum(p.numel() for p in whole.model.parameters())
    assert 0 < few.trainable < few.parameters / 5
    assert few.parameters == everything.parameters + few.trainable


def test_memory_grows_with_the_tokens_of_a_batch_and_shrinks_when_recomputed(tmp_path):
    lm = lm_with(model_of("llama", hidden_size=64, num_hidden_layers=6))
    source = source_of(lm, [leaf(ids_of(60, i)) for i in range(64)], tmp_path, examples_per_step=64)
    small = peak_memory(lm, source, {**PLAN, "tokens_per_batch": 512})
    large = peak_memory(lm, source, {**PLAN, "tokens_per_batch": 2048})
    recomputed = peak_memory(lm, source, {**PLAN, "tokens_per_batch": 2048, "gradient_checkpointing": True})
    per_token = trial(lm, source, "fp32").saved_per_token
    errors = 4 * 1536 * lm.model.config.vocab_size  # of the head, while they are few
    assert large - small == pytest.approx(1.25 * 1536 * per_token * 7 / 6 + errors, rel=1e-6)
    assert small < recomputed < large
    lm.model.get_output_embeddings().weight.requires_grad_(False)
    frozen = [peak_memory(lm, source, {**PLAN, "tokens_per_batch": n}) for n in (512, 2048)]
    assert frozen[1] - frozen[0] == pytest.approx(large - small - errors, rel=1e-6)


def test_bytes_kept_for_backward_are_those_that_a_batch_keeps(tmp_path):
    """Four times the rows keep what the trial says: the part that grows, grows with the tokens."""
    lm = lm_with(model_of("gpt2"))
    source = source_of(lm, [leaf(ids_of(50, i)) for i in range(40)], tmp_path)
    seen = trial(lm, source, "fp32")
    rows = np.arange(32)
    kept, _ = estimating._passes(lm, source.store, rows, "fp32")
    assert kept == pytest.approx(seen.saved_always + seen.saved_per_token * 32 * 50, rel=0.03)


def test_a_trial_leaves_no_gradient_draws_nothing_and_happens_once(tmp_path, monkeypatch):
    lm = lm_with(model_of("gpt2", resid_pdrop=0.5))
    source = source_of(lm, [leaf(ids_of(20, i)) for i in range(8)], tmp_path)
    before = torch.get_rng_state()
    first = trial(lm, source, "fp32")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in lm.model.parameters())
    monkeypatch.setattr(estimating, "_tried", lambda *args: pytest.fail("tried again"))
    assert trial(lm, source, "fp32") is first


def test_activations_are_recomputed_only_where_memory_is_short(tmp_path, monkeypatch):
    lm = lm_with(model_of("llama"))
    source = source_of(lm, [leaf(ids_of(20, i)) for i in range(8)], tmp_path)
    assert not estimating.choose_checkpointing(lm, source, PLAN)
    monkeypatch.setattr(estimating.os, "sysconf", lambda name: 4096)
    assert estimating.choose_checkpointing(lm, source, PLAN)


def test_it_is_said_before_the_first_step(tmp_path, capsys):
    set_quiet(False)
    lm = lm_with(model_of("llama"))
    trees = [leaf(ids_of(20, i)) for i in range(8)] + [leaf([5])]
    fit(lm, tree_rows(trees), Trees(), config(), out=tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(said) if line == "train: 5 steps")
    assert said[start - 3].endswith("parameters learn (100 %), in 5 steps")
    assert "padded batches would compute 1.00 times as many" in said[start - 2]
    assert said[start - 2].endswith("rows left out: 1 (no token to learn)")
    assert "GB and 0:0" in said[start - 1]
    assert not any("Writing model shards" in line for line in said)
    assert "padded batches" in (tmp_path / "out" / "run.log").read_text()
