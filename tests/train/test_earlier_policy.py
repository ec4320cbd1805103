"""A policy held to itself: as it was before its first step, or when the round began, with no second model in memory."""

import os
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from maypole.core.errors import ConfigError, UserError
from maypole.core.seeds import derive
from maypole.models.adapters import load_adapter
from maypole.models.language_model import LanguageModel
from maypole.models.peft_options import PeftOptions
from maypole.train import fit
from maypole.train.batch import pack
from maypole.train.reference import ReferenceLogps
from tests.tiny_models import model_of
from tests.train.test_resume import At, assert_same, in_a_child, kill
from tests.train.train_fixtures import (
    Preferences,
    config,
    context,
    ids_of,
    leaf,
    lines_of,
    lm_with,
    store_of,
    tree_rows,
    weights_of,
)

ROUNDS, ROWS, STEPS = 3, 8, 4
LEARNERS = {"all weights": {}, "adapter": {"peft": PeftOptions(r=4)}}


class Pairs:
    """Pairs that are new in every round."""

    count = ROUNDS
    fingerprint = "pairs of a test"

    def __init__(self, dies_in: int | None = None) -> None:
        self.dies_in = dies_in

    def __call__(self, round: int, lm: Any) -> Dataset:
        if round == self.dies_in:
            kill()
        seeds = [derive(3, round, i) % 2**31 for i in range(ROWS)]
        return tree_rows(
            [context(ids_of(5, s), leaf(ids_of(4, s + 1), "chosen"), leaf(ids_of(6, s + 2), "rejected")) for s in seeds]
        )


class Watch(TrainerCallback):
    """The weights at the end of every round, and what is known of the reference in it."""

    def __init__(self, out: Path, lm: LanguageModel) -> None:
        self.part, self.lm = out.with_name(out.name + ".part"), lm
        self.policies: list[Any] = []
        self.known: list[np.ndarray] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % STEPS == 0:
            number = state.global_step // STEPS - 1
            path = self.part / "checkpoints" / f"reference-round-{number:03}.f32"
            self.known.append(np.fromfile(path, dtype=np.float32))
            self.policies.append(deepcopy(self.lm.model))


def run(out: Path, learner: str, which: Any, *callbacks: Any, rows: Any = None, **changes: Any) -> LanguageModel:
    lm = lm_with(model_of("llama"))
    given: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2.0, "save_steps": 2, "weight_decay": 0.1}
    wanted = config(**{**given, **LEARNERS[learner], **changes})
    fit(lm, Pairs() if rows is None else rows, Preferences(), wanted, out=out, reference=which, callbacks=callbacks)
    return lm


def logps_by(model: Any, round: int) -> np.ndarray:
    """(T,) of the round's tokens by `model`, computed in one batch; NaN where nothing is scored."""
    lm = lm_with(model.eval())
    store = store_of(Pairs()(round, lm), Preferences(), lm)
    batch = pack(store, np.arange(len(store)))
    found = np.full(store.tokens, np.nan, dtype=np.float32)
    found[batch.token] = ReferenceLogps(lm, "fp32", None)._compute(batch).numpy()
    return found


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("which", ["initial", "previous"])
def test_what_is_kept_is_what_the_policy_of_that_time_says(tmp_path, learner: str, which: Any):
    lm = lm_with(model_of("llama"))
    watch = Watch(tmp_path / "run", lm)
    wanted = config(max_steps=-1, num_train_epochs=2.0, **LEARNERS[learner])
    fit(lm, Pairs(), Preferences(), wanted, out=tmp_path / "run", reference=which, callbacks=[watch])
    first = model_of("llama")
    policies = [first, first, first] if which == "initial" else [first, *watch.policies[:2]]
    for round, policy in enumerate(policies):
        np.testing.assert_allclose(watch.known[round], logps_by(policy, round), rtol=0, atol=2e-5)
    moved = logps_by(watch.policies[1], 2)
    assert (np.nanmax(np.abs(watch.known[2] - moved)) > 0.1) == (which == "initial")


@pytest.mark.parametrize("learner", LEARNERS)
def test_held_to_the_first_policy_equal_rows_are_told_the_same_to_the_last_bit_in_every_round(tmp_path, learner: str):
    """The third round's reference is the first policy, not one like it."""

    class Again(Pairs):
        def __call__(self, round: int, lm: Any) -> Dataset:
            return super().__call__(0, lm)

    known: dict[str, list[np.ndarray]] = {}
    for which in ("initial", "previous"):
        lm = lm_with(model_of("llama"))
        watch = Watch(tmp_path / which, lm)
        wanted = config(max_steps=-1, num_train_epochs=2.0, shuffle=False, **LEARNERS[learner])
        fit(lm, Again(), Preferences(), wanted, out=tmp_path / which, reference=which, callbacks=[watch])
        known[which] = watch.known
    first, second, third = known["initial"]
    assert first.tobytes() == second.tobytes() == third.tobytes()
    assert first.tobytes() == known["previous"][0].tobytes() != known["previous"][2].tobytes()


def test_an_adapter_that_is_the_reference_is_saved_with_its_round(tmp_path):
    lm = lm_with(model_of("llama"))
    watch = Watch(tmp_path / "run", lm)
    wanted = config(max_steps=-1, num_train_epochs=2.0, **LEARNERS["adapter"])
    fit(lm, Pairs(), Preferences(), wanted, out=tmp_path / "run", reference="previous", callbacks=[watch])
    for round in range(ROUNDS):
        saved = load_adapter(lm_with(model_of("llama")), tmp_path / "run" / "rounds" / f"{round:03}" / "reference")
        np.testing.assert_allclose(watch.known[round], logps_by(saved.model, round), rtol=0, atol=2e-5)
    again = peft.PeftModel.from_pretrained(model_of("llama"), tmp_path / "run" / "rounds" / "002" / "reference")
    np.testing.assert_allclose(watch.known[2], logps_by(again, 2), rtol=0, atol=2e-5)


@pytest.mark.parametrize("learner", LEARNERS)
def test_held_to_the_previous_policy_every_round_begins_without_a_margin(tmp_path, learner: str):
    run(tmp_path / "run", learner, "previous")
    losses = [line["loss"] for line in lines_of(tmp_path / "run")]
    assert [i for i, loss in enumerate(losses) if loss == pytest.approx(np.log(2), rel=1e-6)] == [0, 4, 8]
    run(tmp_path / "initial", learner, "initial")
    losses = [line["loss"] for line in lines_of(tmp_path / "initial")]
    assert [i for i, loss in enumerate(losses) if loss == pytest.approx(np.log(2), rel=1e-6)] == [0]


@pytest.mark.parametrize(("learner", "which"), [("all weights", "initial"), ("adapter", "previous")])
def test_killed_anywhere_it_is_held_to_the_same_policy(tmp_path, learner: str, which: str):
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    run(whole, learner, which)
    out = tmp_path / "run"
    assert in_a_child(lambda: run(out, learner, which, rows=Pairs(dies_in=1))) == -signal.SIGKILL
    for step in (5, 8, 11):
        assert in_a_child(lambda s=step: run(out, learner, which, At(s, kill))) == -signal.SIGKILL
    run(out, learner, which)
    assert_same(out, whole)


def test_killed_while_the_reference_is_computed_the_weights_that_were_aside_are_not_lost(tmp_path, monkeypatch):
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    run(whole, "all weights", "initial")
    compute, calls = ReferenceLogps._compute, []

    def dies(self: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return kill() if len(calls) == 4 else compute(self, batch)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceLogps, "_compute", dies)
        assert in_a_child(lambda: run(tmp_path / "run", "all weights", "initial")) == -signal.SIGKILL
    assert any((tmp_path / "run.part" / "checkpoints").glob("aside-*"))
    run(tmp_path / "run", "all weights", "initial")
    assert_same(tmp_path / "run", whole)


def test_given_rows_are_a_single_round(tmp_path):
    rows = Pairs()(0, None)
    lm = run(tmp_path / "own", "all weights", "initial", rows=rows)
    other = lm_with(model_of("llama"))
    wanted = config(max_steps=-1, num_train_epochs=2.0, save_steps=2, weight_decay=0.1)
    copy = lm_with(model_of("llama"), fingerprint="copy")
    fit(other, rows, Preferences(), wanted, out=tmp_path / "copy", reference=copy, eval_rows=rows)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(lm).values(), weights_of(other).values()))
    third = lm_with(model_of("llama"))
    fit(third, rows, Preferences(), wanted, out=tmp_path / "third", reference="initial", eval_rows=rows)
    assert lines_of(tmp_path / "third") == lines_of(tmp_path / "copy")


def test_what_an_earlier_policy_cannot_do_is_said_before_anything_is_computed(tmp_path):
    with pytest.raises(ConfigError, match="reference-logps"):
        run(tmp_path / "a", "all weights", "initial", reference_logps="live")
    lm, rows = lm_with(model_of("llama")), Pairs()(0, None)
    with pytest.raises(UserError, match="eval_rows"):
        fit(lm, rows, Preferences(), config(), out=tmp_path / "b", reference="previous", eval_rows=rows)
    assert not os.path.exists(tmp_path / "a.part")
