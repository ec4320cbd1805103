"""The frozen model's log-probs: computed when needed, kept, and equal whether kept or not."""

from copy import deepcopy

import numpy as np
import peft
import pytest
import torch

from maypole.core.errors import UserError
from maypole.models.language_model import LanguageModel
from maypole.train import fit
from tests.tiny_models import model_of
from tests.train.train_fixtures import (
    Preferences,
    Trees,
    config,
    context,
    farthest,
    ids_of,
    leaf,
    lines_of,
    lm_with,
    tree_rows,
    weights_of,
)


def pairs(count: int = 12) -> list:
    return [
        context(ids_of(4 + i, i), leaf(ids_of(5, 50 + i), "chosen"), leaf(ids_of(6 + i % 3, 90 + i), "rejected"))
        for i in range(count)
    ]


def adapted(seed: int = 0) -> LanguageModel:
    """A LoRA that already does something on a tiny Llama."""
    torch.manual_seed(3)
    wanted = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return lm_with(peft.get_peft_model(model_of("llama", seed), wanted))


def test_cached_equals_live_over_several_epochs(tmp_path):
    trained = {}
    for how in ("cached", "live"):
        lm = lm_with(model_of("llama"))
        fit(
            lm, tree_rows(pairs()), Preferences(), config(max_steps=9, reference_logps=how, learning_rate=1e-3),
            out=tmp_path / how, reference=lm_with(model_of("llama", seed=1), fingerprint="other"),
        )  # fmt: skip
        trained[how] = weights_of(lm)
    assert farthest(trained["cached"], trained["live"]) < 1e-6
    assert lines_of(tmp_path / "cached")[0] == lines_of(tmp_path / "live")[0]


def test_a_view_without_the_adapter_is_a_frozen_copy_of_the_base(tmp_path):
    lm = adapted()
    copy = lm_with(deepcopy(lm.model).unload(), fingerprint="base")
    before = weights_of(copy)
    fit(lm, tree_rows(pairs()), Preferences(), config(), out=tmp_path / "view", reference=lm.with_adapter(None))
    other = adapted()
    fit(other, tree_rows(pairs()), Preferences(), config(), out=tmp_path / "copy", reference=copy)
    assert farthest(weights_of(lm), weights_of(other)) < 1e-6
    assert farthest(weights_of(copy), before) == 0.0
    assert all(p.grad is None for p in copy.model.parameters())


def test_the_policys_own_start_is_a_reference_without_any_margin(tmp_path):
    lm = lm_with(model_of("llama"))
    fit(
        lm, tree_rows(pairs()), Preferences(), config(max_steps=1), out=tmp_path / "a",
        reference=lm_with(deepcopy(lm.model), fingerprint="same"),
    )  # fmt: skip
    assert lines_of(tmp_path / "a")[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)


def test_a_reference_that_is_missing_or_has_no_use_is_an_error_before_anything_is_computed(tmp_path):
    lm = lm_with(model_of("llama"))
    with pytest.raises(UserError, match="Preferences needs a reference model"):
        fit(lm, tree_rows(pairs()), Preferences(), config(), out=tmp_path / "a")
    with pytest.raises(UserError, match="Trees has no use for a reference model"):
        fit(lm, tree_rows(pairs()), Trees(), config(), out=tmp_path / "b", reference=lm)
    assert lm.fingerprint == "tiny"
