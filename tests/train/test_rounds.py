"""Rows made on the way: one optimiser and schedule over all rounds, each round's rows made once and kept."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.core.seeds import derive
from maypole.models.peft_options import PeftOptions
from maypole.train import fit
from tests.tiny_models import model_of
from tests.train.test_resume import At, assert_same, in_a_child, kill
from tests.train.train_fixtures import Trees, config, ids_of, leaf, lines_of, lm_with, tree_rows, weights_of

ROUNDS, ROWS, STEPS_A_ROUND = 3, 12, 3


class Made:
    """Rounds whose rows depend on the weights that made them; `diary` counts every making, across processes."""

    count = ROUNDS
    fingerprint = "rounds of a test"

    def __init__(self, diary: Path, dies_in: int | None = None) -> None:
        self.diary, self.dies_in = diary, dies_in

    def __call__(self, round: int, lm: Any) -> Dataset:
        assert not lm.model.training
        if round == self.dies_in:
            kill()
        torch.rand(3)  # what a round draws must not shift what training draws later
        print(round, file=self.diary.open("a"))
        seen = sum(float(p.detach().double().abs().sum()) for p in lm.model.parameters())
        trees = [leaf(ids_of(6, derive(7, round, i, f"{seen:.12g}") % 2**31)) for i in range(ROWS)]
        return tree_rows(trees)


def run(out: Path, rounds: Any, *callbacks: Any, family: str = "gpt2", **changes: Any) -> Any:
    shape: dict[str, Any] = {"resid_pdrop": 0.1} if family == "gpt2" else {}
    lm = lm_with(model_of(family, **shape))
    wanted = config(**{"max_steps": -1, "save_steps": 2, "learning_rate": 1e-3, "weight_decay": 0.1, **changes})
    fit(lm, rounds, Trees(), wanted, out=out, callbacks=callbacks)
    return lm


def test_one_schedule_spans_the_rounds_and_every_round_is_kept(tmp_path):
    out = tmp_path / "run"
    run(out, Made(tmp_path / "diary"))
    lines = lines_of(out)
    assert [line["step"] for line in lines] == list(range(1, ROUNDS * STEPS_A_ROUND + 1))
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([1e-3 * (9 - i) / 9 for i in range(9)])
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1.0] * 3, abs=1e-3)
    assert (tmp_path / "diary").read_text().split() == ["0", "1", "2"]
    assert [(out / "rounds" / f"{i:03}" / "rows.parquet").is_file() for i in range(3)] == [True] * 3


@pytest.mark.parametrize("optimizer", ["continue", "fresh"])
def test_killed_between_sampling_and_training_nothing_is_lost_or_counted_twice(tmp_path, optimizer: str):
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    run(whole, Made(tmp_path / "whole" / "diary"), optimizer=optimizer)
    out, diary = tmp_path / "run", tmp_path / "diary"
    assert in_a_child(lambda: run(out, Made(diary, dies_in=0), optimizer=optimizer)) == -signal.SIGKILL
    for step in (1, 3, 4, 6, 8):  # 3 and 6 are the last steps of their rounds: the next one's rows are not made yet
        assert in_a_child(lambda s=step: run(out, Made(diary), At(s, kill), optimizer=optimizer)) == -signal.SIGKILL
    run(out, Made(diary), optimizer=optimizer)
    assert_same(out, whole)
    assert diary.read_text().split() == ["0", "1", "2"]


@pytest.mark.parametrize("optimizer", ["continue", "fresh"])
def test_killed_exactly_at_a_boundary_the_optimiser_is_fresh_or_goes_on(tmp_path, optimizer: str):
    """Right after the checkpoint of a round's last step, before anything of the next one."""
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole" / "run", Made(tmp_path / "a"), optimizer=optimizer)
    dying = Made(tmp_path / "b", dies_in=1)
    assert in_a_child(lambda: run(tmp_path / "run", dying, optimizer=optimizer)) == -signal.SIGKILL
    assert (tmp_path / "run.part" / "checkpoints" / f"step-{STEPS_A_ROUND:08}").is_dir()
    run(tmp_path / "run", Made(tmp_path / "b"), optimizer=optimizer)
    assert_same(tmp_path / "run", tmp_path / "whole" / "run")


def test_a_fresh_optimiser_forgets_its_moments_at_the_boundary(tmp_path):
    """Round two with a fresh optimiser is a run of its own on the weights, rows and rates of that round."""
    seen: dict[int, Any] = {}

    class Look(At):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = kwargs["optimizer"]
            seen[state.global_step] = [int(s["step"]) for s in optimizer.state.values()][:1]

    run(tmp_path / "fresh", Made(tmp_path / "a"), Look(0, kill), optimizer="fresh")
    assert [seen[i] for i in range(9)] == [[], [1], [2]] * 3
    run(tmp_path / "continue", Made(tmp_path / "b"), Look(0, kill), optimizer="continue")
    assert [seen[i] for i in range(9)] == [[], *([i] for i in range(1, 9))]


def test_every_round_has_its_own_rate_and_the_schedule_begins_anew(tmp_path):
    rates = (1e-3, 5e-4, 2e-3)
    given = {"optimizer": "fresh", "round_learning_rates": rates, "warmup_ratio": 1 / 3}
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole" / "run", Made(tmp_path / "a"), **given)
    learning = [line["learning_rate"] for line in lines_of(tmp_path / "whole" / "run")]
    # Three steps a round: one to warm up, then the whole rate, then half of it.
    assert learning == pytest.approx([rate * share for rate in rates for share in (0, 1, 0.5)])
    for step in (3, 5):  # the boundary of two rounds, and the middle of one
        dies = At(step, kill)
        assert in_a_child(lambda d=dies: run(tmp_path / "run", Made(tmp_path / "b"), d, **given)) == -signal.SIGKILL
    run(tmp_path / "run", Made(tmp_path / "b"), **given)
    assert_same(tmp_path / "run", tmp_path / "whole" / "run")


def test_one_rate_begins_anew_with_a_fresh_optimiser(tmp_path):
    run(tmp_path / "run", Made(tmp_path / "diary"), optimizer="fresh")
    learning = [line["learning_rate"] for line in lines_of(tmp_path / "run")]
    assert learning == pytest.approx([1e-3 * share for share in (1, 2 / 3, 1 / 3)] * ROUNDS)


def test_rates_that_do_not_fit_the_rounds_are_an_error_before_rows_are_made(tmp_path):
    with pytest.raises(ConfigError, match=r"--round-learning-rates: [\s\S]*one for each round, here 3"):
        run(tmp_path / "run", Made(tmp_path / "diary"), optimizer="fresh", round_learning_rates=(1e-3, 1e-4))
    with pytest.raises(ConfigError, match="or optimizer fresh, with a schedule for each"):
        config(round_learning_rates=(1e-3,) * ROUNDS)
    with pytest.raises(ConfigError, match="above 0"):
        config(round_learning_rates=(1e-3, 0.0, 1e-3), optimizer="fresh")
    assert not (tmp_path / "diary").exists()


def test_rmsprop_takes_torchs_step_and_goes_on_after_a_kill(tmp_path):
    given = {"optim": "rmsprop", "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0}
    (tmp_path / "whole").mkdir()
    moved: list[float] = []
    first = weights_of(lm_with(model_of("gpt2", resid_pdrop=0.1)))

    class Look(At):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                now = kwargs["model"].state_dict()
                moved.extend(float((now[name] - before).abs().max()) for name, before in first.items())

    run(tmp_path / "whole" / "run", Made(tmp_path / "a"), Look(0, kill), **given)
    # Its mean square is begun at 0 with a hundredth of g²: the first step is lr g / (|g| / 10), ten rates.
    assert max(moved) == pytest.approx(1e-2, rel=1e-3)
    for step in (3, 5):
        dies = At(step, kill)
        assert in_a_child(lambda d=dies: run(tmp_path / "run", Made(tmp_path / "b"), d, **given)) == -signal.SIGKILL
    run(tmp_path / "run", Made(tmp_path / "b"), **given)
    assert_same(tmp_path / "run", tmp_path / "whole" / "run")


def test_max_steps_are_shared_out_among_the_rounds(tmp_path):
    run(tmp_path / "run", Made(tmp_path / "diary"), max_steps=5)
    assert len(lines_of(tmp_path / "run")) == 5
    assert (tmp_path / "diary").read_text().split() == ["0", "1", "2"]  # two, two and one


def test_a_round_sees_the_adapter_in_training(tmp_path):
    class Adapted(Made):
        def __call__(self, round: int, lm: Any) -> Dataset:
            moved = [float(p.detach().abs().sum()) for n, p in lm.model.named_parameters() if "lora_B" in n]
            assert (sum(moved) > 0) == (round > 0)
            return super().__call__(round, lm)

    run(tmp_path / "run", Adapted(tmp_path / "diary"), family="llama", peft=PeftOptions(r=2))
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_what_training_draws_does_not_depend_on_what_a_round_drew(tmp_path):
    class Greedy(Made):
        def __call__(self, round: int, lm: Any) -> Dataset:
            torch.rand(1000)
            return super().__call__(round, lm)

    run(tmp_path / "a", Made(tmp_path / "x"))
    run(tmp_path / "b", Greedy(tmp_path / "y"))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_round_without_rows_or_with_wrong_ones_says_so(tmp_path):
    class Empty(Made):
        def __call__(self, round: int, lm: Any) -> Dataset:
            return Dataset.from_dict({"tree": []}) if round else super().__call__(round, lm)

    class Wrong(Made):
        def __call__(self, round: int, lm: Any) -> Dataset:
            return Dataset.from_dict({"text": ["no tree"]})

    with pytest.raises(UserError, match="round 1: it made no rows"):
        run(tmp_path / "empty", Empty(tmp_path / "x"))
    run(tmp_path / "empty", Made(tmp_path / "x"))  # so the round is made again
    assert (tmp_path / "x").read_text().split() == ["0", "1", "2"]
    with pytest.raises(DataError, match="tree"):
        run(tmp_path / "wrong", Wrong(tmp_path / "y"))


def test_an_error_in_a_round_leaves_the_model_usable_and_the_run_resumable(tmp_path):
    class Fails(Made):
        def __call__(self, round: int, lm: Any) -> Dataset:
            if round == 1:
                raise RuntimeError("the judge is away")
            return super().__call__(round, lm)

    lm = lm_with(model_of("llama"))
    before = weights_of(lm)
    wanted = config(max_steps=-1, peft=PeftOptions(r=2))
    with pytest.raises(RuntimeError, match="the judge is away"):
        fit(lm, Fails(tmp_path / "diary"), Trees(), wanted, out=tmp_path / "run")
    assert lm.adapters == ()
    assert lm.fingerprint == "tiny"
    assert weights_of(lm).keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in weights_of(lm).items())
    fit(lm, Made(tmp_path / "diary"), Trees(), wanted, out=tmp_path / "run")
    assert (tmp_path / "diary").read_text().split() == ["0", "1", "2"]
    assert os.path.isfile(tmp_path / "run" / "adapter_model.safetensors")
