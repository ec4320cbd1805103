"""The frozen model's log-probs: computed when needed, kept, and equal whether kept or not."""

from copy import deepcopy
from typing import Any

import numpy as np
import peft
import pytest
import torch

from maypole.core.errors import ArtifactError, UserError
from maypole.models import PeftOptions
from maypole.models.language_model import LanguageModel
from maypole.train import fit
from maypole.train.reference import ReferenceLogps
from maypole.train.trainer import PackedTrainer
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
    return lm_with(peft.get_peft_model(model_of("llama", seed), wanted), fingerprint="adapted")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


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


LORA = PeftOptions(type="lora", r=4, target_modules=("all-linear",))


def fresh() -> LanguageModel:
    return lm_with(model_of("llama"))


@pytest.mark.parametrize("how", ["cached", "live"])
@pytest.mark.parametrize("start", [fresh, adapted], ids=["new adapter", "adapter that goes on"])
def test_held_to_itself_an_adapter_learns_as_if_held_to_a_copy_of_the_model_at_the_start(start, how: str, tmp_path):
    given: dict[str, Any] = {"max_steps": 6, "reference_logps": how}
    if start is fresh:
        given["peft"] = LORA
    runs = {}
    for name in ("itself", "a copy"):
        lm = start()
        reference = "initial" if name == "itself" else lm_with(deepcopy(lm.model), fingerprint="copy")
        fit(lm, tree_rows(pairs()), Preferences(), config(**given), out=tmp_path / name, reference=reference)
        assert lm.adapters == ("default",)
        runs[name] = weights_of(lm)
    assert farthest(runs["itself"], runs["a copy"]) < 1e-6
    assert lines_of(tmp_path / "itself")[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)


def test_the_base_of_a_new_adapter_is_the_module_with_the_adapter_off(tmp_path):
    runs = []
    for reference in (lambda lm: lm.with_adapter(None), lambda lm: lm_with(deepcopy(lm.model), fingerprint="copy")):
        lm = fresh()
        wanted = config(max_steps=6, peft=LORA, reference_logps="live")
        fit(lm, tree_rows(pairs()), Preferences(), wanted, out=tmp_path / str(len(runs)), reference=reference(lm))
        runs.append(weights_of(lm))
    assert farthest(*runs) < 1e-6


def test_all_weights_can_be_held_to_what_they_were_without_a_copy_of_them(tmp_path):
    lm, other = fresh(), fresh()
    held = tree_rows(pairs(5))
    fit(
        lm,
        tree_rows(pairs()),
        Preferences(),
        config(max_steps=8),
        out=tmp_path / "a",
        reference="initial",
        eval_rows=held,
    )
    copy = lm_with(deepcopy(other.model), fingerprint="copy")
    wanted = config(max_steps=8)
    fit(other, tree_rows(pairs()), Preferences(), wanted, out=tmp_path / "b", reference=copy, eval_rows=held)
    assert farthest(weights_of(lm), weights_of(other)) < 1e-6
    ours, theirs = lines_of(tmp_path / "a"), lines_of(tmp_path / "b")
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    assert ours[-1]["eval_loss"] == pytest.approx(theirs[-1]["eval_loss"], rel=1e-5)


def test_weights_that_learn_cannot_be_asked_again_and_again(tmp_path):
    lm = fresh()
    with pytest.raises(UserError, match="an earlier policy stands in no model"):
        fit(
            lm, tree_rows(pairs()), Preferences(), config(reference_logps="live"), out=tmp_path / "a",
            reference="initial",
        )  # fmt: skip


@pytest.mark.parametrize("start", [fresh, adapted])
def test_the_model_that_learns_is_no_reference(start, tmp_path):
    lm = start()
    with pytest.raises(UserError, match=r'it is the model that learns\n.*"initial"'):
        fit(lm, tree_rows(pairs()), Preferences(), config(), out=tmp_path / "a", reference=lm)


def test_a_base_whose_adapter_is_merged_away_is_no_reference(tmp_path):
    lm = adapted()
    with pytest.raises(UserError, match="this view of the base is without it"):
        fit(
            lm, tree_rows(pairs()), Preferences(), config(peft=LORA), out=tmp_path / "a",
            reference=lm.with_adapter(None),
        )  # fmt: skip
    fit(lm, tree_rows(pairs()), Preferences(), config(peft=LORA), out=tmp_path / "b", reference="initial")
    assert lines_of(tmp_path / "b")[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("how", ["cached", "live"])
def test_an_adapter_that_begins_with_more_than_nothing_is_held_to_itself_and_not_to_the_base(how: str, tmp_path):
    lm = fresh()
    changed = PeftOptions(type="lora", r=4, target_modules=("all-linear",), options={"init_lora_weights": False})
    wanted = config(max_steps=2, peft=changed, reference_logps=how)
    fit(lm, tree_rows(pairs()), Preferences(), wanted, out=tmp_path / "a", reference="initial")
    assert lines_of(tmp_path / "a")[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many scored tokens each call to the reference had."""
    seen: list[int] = []
    real = ReferenceLogps._compute

    def compute(self, batch):
        seen.append(len(batch.source))
        return real(self, batch)

    monkeypatch.setattr(ReferenceLogps, "_compute", compute)
    return seen


def test_what_one_run_computed_the_next_finds_whatever_its_loss(computed, tmp_path, monkeypatch):
    first = fresh()
    fit(first, tree_rows(pairs()), Preferences(), config(max_steps=3), out=tmp_path / "a", reference="initial")
    assert sum(computed) == sum(11 + i % 3 for i in range(12))
    computed.clear()
    second = fresh()
    fit(second, tree_rows(pairs()), Preferences(beta=0.5), config(max_steps=3), out=tmp_path / "b", reference="initial")
    assert not computed
    other = lm_with(model_of("llama", seed=2), fingerprint="another model")
    fit(fresh(), tree_rows(pairs()), Preferences(), config(max_steps=3), out=tmp_path / "c", reference=other)
    assert computed
    computed.clear()
    monkeypatch.setattr("maypole.train.reference.versions", lambda: {"torch": "another, which may round otherwise"})
    fit(fresh(), tree_rows(pairs()), Preferences(), config(max_steps=3), out=tmp_path / "d", reference="initial")
    assert computed


def test_only_rows_that_the_run_takes_are_asked_about(computed, tmp_path):
    lm = fresh()
    fit(lm, tree_rows(pairs()), Preferences(), config(max_steps=1), out=tmp_path / "a", reference="initial")
    assert sum(computed) < sum(11 + i % 3 for i in range(12))


def test_an_interrupted_run_goes_on_with_the_reference_it_began_with(tmp_path, monkeypatch):
    def run(name: str) -> LanguageModel:
        lm = fresh()
        wanted = config(max_steps=8, save_steps=2)
        fit(lm, tree_rows(pairs()), Preferences(), wanted, out=tmp_path / name, reference="initial")
        return lm

    whole = run("whole")
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "another"))
    real = PackedTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        if int(inputs["step"]) == 5:
            raise OSError("gone")
        return real(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(PackedTrainer, "training_step", training_step)
    for name in ("part", "lost"):
        with pytest.raises(OSError, match="gone"):
            run(name)
    monkeypatch.setattr(PackedTrainer, "training_step", real)
    assert farthest(weights_of(run("part")), weights_of(whole)) == 0.0
    (found,) = tmp_path.glob("lost.part/**/reference-round-000.f32")
    found.unlink()
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "a third"))
    with pytest.raises(ArtifactError, match="are gone, and so is that policy"):
        run("lost")
