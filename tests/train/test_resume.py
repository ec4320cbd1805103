"""Kill a run anywhere: the same call goes on and ends as if nothing had happened, byte for byte."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from maypole.core.artifact import Artifact
from maypole.core.errors import ArtifactError, UserError
from maypole.models.peft_options import PeftOptions
from maypole.train import fit, precision
from maypole.train import trainer as training
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, farthest, ids_of, leaf, lines_of, lm_with, tree_rows, weights_of

STEPS, SAVE = 9, 3
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
CASES = {
    "all weights": ("gpt2", DROPOUT, {}),
    "adapter": ("llama", {}, {"peft": PeftOptions(r=4, lora_dropout=0.2)}),
}


class At(TrainerCallback):
    """Does something when a step is done."""

    def __init__(self, step: int, what: Callable[[], None]) -> None:
        self.step, self.what = step, what

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(out: Path, case: str, *callbacks: TrainerCallback, **changes: Any) -> tuple[Artifact, Any]:
    family, shape, options = CASES[case]
    lm = lm_with(model_of(family, **shape))
    rows = tree_rows([leaf(ids_of(5 + i % 11, i)) for i in range(26)])
    wanted = config(
        **{
            "max_steps": STEPS, "save_steps": SAVE, "logging_steps": 2, "learning_rate": 1e-3, "weight_decay": 0.01,
            "lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "eval_steps": 4, **options, **changes,
        }
    )  # fmt: skip
    held_out = tree_rows([leaf(ids_of(9, 100 + i)) for i in range(3)])
    return fit(lm, rows, Trees(), wanted, out=out, seed=3, callbacks=callbacks, eval_rows=held_out), lm


def in_a_child(work: Callable[[], Any]) -> int:
    """The exit code of `work` in a forked process, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record(out: Path) -> dict[str, Any]:
    """The manifest without what the clock and the memory say."""
    manifest = json.loads((out / "manifest.json").read_text())
    measured = {"wall_seconds", "cpu_seconds", "peak_rss_bytes", "finished_at"}
    return {name: value for name, value in manifest.items() if name not in measured}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Path]:
    outs = {case: tmp_path_factory.mktemp("undisturbed") / case.replace(" ", "-") for case in CASES}
    for case, out in outs.items():
        run(out, case)
    return outs


def assert_same(out: Path, undisturbed: Path) -> None:
    assert record(out) == record(undisturbed)
    for file in record(out)["files"]:
        assert (out / file["path"]).read_bytes() == (undisturbed / file["path"]).read_bytes(), file["path"]
    assert lines_of(out) == lines_of(undisturbed)
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_save_point_and_between(case: str, tmp_path, undisturbed):
    out = tmp_path / undisturbed[case].name
    for step in (1, 3, 3, 4, 6, 8, 9):  # the second kill at 3 comes before the first step of that process is saved
        assert in_a_child(lambda step=step: run(out, case, At(step, kill))) == -signal.SIGKILL
        assert not out.exists()
    run(out, case)
    assert_same(out, undisturbed[case])


def test_killed_while_a_checkpoint_or_the_result_is_written(tmp_path, undisturbed, monkeypatch):
    out = tmp_path / undisturbed["adapter"].name
    for target, name in ((training.os, "rename"), (training, "save_file"), (training.shutil, "rmtree")):
        original, calls = getattr(target, name), []

        def dies(*args: Any, original=original, calls=calls, **kwargs: Any) -> Any:
            calls.append(args)
            return kill() if len(calls) == 2 else original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, dies)
            assert in_a_child(lambda: run(out, "adapter")) == -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["maypole.train.fit"], "save_result", lambda *args: kill())
        assert in_a_child(lambda: run(out, "adapter")) == -signal.SIGKILL
        assert in_a_child(lambda: run(out, "adapter")) == -signal.SIGKILL  # nothing left to train, killed again
    run(out, "adapter")
    assert_same(out, undisturbed["adapter"])


def test_killed_at_any_moment(tmp_path, undisturbed):
    """By the clock of another process, as the kernel or a user would."""
    out = tmp_path / undisturbed["all weights"].name
    for delay in np.random.default_rng(0).uniform(0.05, 1.0, 5):
        child = os.fork()
        if child == 0:
            try:
                run(out, "all weights", *(At(step, lambda: time.sleep(0.05)) for step in range(1, STEPS)))
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(out, "all weights")
    assert_same(out, undisturbed["all weights"])


def test_the_first_signal_asks_for_a_checkpoint_and_the_second_leaves_at_once(tmp_path, undisturbed):
    out = tmp_path / undisturbed["adapter"].name
    part = out.with_name(out.name + ".part")
    assert in_a_child(lambda: run(out, "adapter", At(4, terminate))) == 130
    assert [p.name for p in training.finished_checkpoints(part / "checkpoints")] == ["step-00000003", "step-00000004"]
    assert json.loads((part / "manifest.json").read_text())["state"] == "interrupted"
    assert in_a_child(lambda: run(out, "adapter", At(5, terminate), At(5, terminate))) == 130
    assert [p.name for p in training.finished_checkpoints(part / "checkpoints")] == ["step-00000003", "step-00000004"]
    run(out, "adapter")
    assert_same(out, undisturbed["adapter"])


def test_signal_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path / "run", "adapter", max_steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_memory_settings_may_change_when_a_run_is_continued(tmp_path, monkeypatch):
    out = tmp_path / "run"
    adapter = {"peft": PeftOptions(r=4)}
    expected, _ = run(tmp_path / "whole", "adapter", **adapter)
    assert in_a_child(lambda: run(out, "adapter", At(5, kill), **adapter)) == -signal.SIGKILL
    sizes: list[int] = []
    pack = training.pack
    monkeypatch.setattr(training, "pack", lambda *args: sizes.append(len((b := pack(*args)).input_ids)) or b)
    changes = {"tokens_per_batch": 16, "gradient_checkpointing": True, "save_steps": 2, "logging_steps": 1}
    artifact, _ = run(out, "adapter", **adapter, **changes)
    assert max(sizes) <= 16
    assert artifact.key == expected.key
    again, whole = (load_file(path / "adapter_model.safetensors") for path in (out, tmp_path / "whole"))
    assert farthest(again, whole) < 1e-5


def test_a_finished_run_is_loaded_at_once_and_equals_the_one_that_was_trained(tmp_path, undisturbed):
    for case, out in undisturbed.items():
        _, lm = run(out, case, At(1, lambda: pytest.fail("trained again")))
        _, fresh = run(tmp_path / out.name, case)
        assert all(torch.equal(a, b) for a, b in zip(weights_of(lm).values(), weights_of(fresh).values()))
        assert lm.fingerprint == fresh.fingerprint == Artifact.load(out).key


def test_another_key_is_refused_and_says_what_differs(tmp_path):
    out = tmp_path / "run"
    in_a_child(lambda: run(out, "adapter", At(4, kill)))
    with pytest.raises(ArtifactError, match=r"learning_rate: 0.001 then, 0.5 now"):
        run(out, "adapter", learning_rate=0.5)


def test_a_plan_that_this_machine_cannot_follow_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    out = tmp_path / "run"
    assert in_a_child(lambda: run(out, "adapter", At(4, kill), precision="auto")) == -signal.SIGKILL
    monkeypatch.setattr(sys.modules["maypole.train.fit"], "has_bf16", lambda device: False)
    with pytest.raises(UserError, match="begun in bf16, which this machine lacks"):
        run(out, "adapter", precision="auto")


def test_nothing_in_a_checkpoint_is_unpickled_freely(tmp_path, monkeypatch):
    out = tmp_path / "run"
    in_a_child(lambda: run(out, "all weights", At(4, kill)))
    loads: list[bool] = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(k.get("weights_only", False)) or original(*a, **k))
    run(out, "all weights")
    assert loads == [True] * 3  # optimiser, schedule, random states


def test_an_interrupted_command_says_how_to_go_on_and_does(tmp_path, monkeypatch, capfd):
    from maypole.cli.main import run as command
    from maypole.models import save

    save(lm_with(model_of("llama", vocab_size=260)), tmp_path / "base")
    rows = [{"text": f"the {i}th ribbon of the maypole"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ["train", "pretrain", "--model", "base", "--data", "rows.jsonl", "--out", "out", "--max-steps", "6"]
    step = training.PackedTrainer.training_step

    def terminated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            terminate()
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.PackedTrainer, "training_step", terminated)
        assert in_a_child(lambda: os._exit(command(words))) == 130
    said = capfd.readouterr().err
    assert "stopping when this step is done, with a checkpoint" in said
    assert "stopped. Continue:  maypole " + " ".join(words) in said
    assert in_a_child(lambda: os._exit(command(words))) == 0
    said = capfd.readouterr().err
    assert "train: 3 steps" in said  # three of six were kept
    assert Artifact.load("out").manifest["metrics"]["steps"] == 6
