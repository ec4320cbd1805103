"""Two processes train what one trains: the same weights, one artifact, one voice; and nobody waits for the dead."""

import faulthandler
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # FSDP wants it; imported here it is there in every child
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from safetensors.torch import load_file

from maypole.cli.app import parse
from maypole.cli.commands import COMMANDS
from maypole.cli.main import run as command
from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.seeds import derive
from maypole.models import load, save
from maypole.models.peft_options import PeftOptions
from maypole.train import Segment, TokenBatch, fit, ranks
from maypole.train.trainer import finished_checkpoints
from tests.engine.engine_fixtures import lm_of
from tests.tiny_models import model_of
from tests.train.test_resume import At, in_a_child, kill, terminate
from tests.train.train_fixtures import (
    Preferences,
    Trees,
    config,
    context,
    ids_of,
    leaf,
    lines_of,
    lm_with,
    tree_rows,
    weights_of,
)

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEADLINE = 60.0
ROOT = Path(__file__).parents[2]


def launched(
    folder: Path, work: Callable[[int], Any], count: int = 2, env: Mapping[str, str] = MappingProxyType({})
) -> list[tuple[int, Any]]:
    """Exit code and result, or traceback, of `work(rank)` in each of `count` processes, started as a launcher does."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # theirs, as torchrun's
    place = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = [_forked(folder, work, rank, count, {**place, **env}) for rank in range(count)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + DEADLINE
    while waiting := [child for child in children if child not in codes]:
        if time.monotonic() > deadline:
            for child in waiting:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            stacks = {rank: (folder / f"stack-{rank}").read_text() for rank in range(count)}
            pytest.fail(f"still at work after {DEADLINE:.0f} s: {len(waiting)} of {count}, where\n{stacks}")
        for child in waiting:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    notes = [folder / f"said-{rank}" for rank in range(count)]
    said = [pickle.loads(note.read_bytes()) if note.is_file() else None for note in notes]
    for note in notes:
        note.unlink(missing_ok=True)
    return [(codes[child], words) for child, words in zip(children, said)]


def _forked(folder: Path, work: Callable[[int], Any], rank: int, count: int, env: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    code, said = 3, None
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", **env}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    faulthandler.dump_traceback_later(DEADLINE - 5, file=(folder / f"stack-{rank}").open("w"))
    try:
        said, code = work(rank), 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 3
    except BaseException as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
    finally:
        (folder / f"said-{rank}").write_bytes(pickle.dumps(said))
        os._exit(code)


def texts(count: int = 26) -> list[Segment]:
    """Of 3 to 92 tokens, so that no two parts of a step are alike."""
    return [leaf(ids_of(3 + int(np.random.default_rng(i).integers(90)), i)) for i in range(count)]


def pairs(count: int = 14) -> list[Segment]:
    lengths = [1 + int(np.random.default_rng(i).integers(20)) for i in range(count)]
    return [
        context(ids_of(4 + i, i), leaf(ids_of(n, 100 + i), "chosen"), leaf(ids_of(21 - n, 200 + i), "rejected"))
        for i, n in enumerate(lengths)
    ]


def run(out: Path, *callbacks: Any, family: str = "llama", objective: Any = None, **changes: Any) -> Any:
    lm = lm_with(model_of(family))
    wanted = config(**{
        "examples_per_step": 5, "max_steps": 6, "learning_rate": 1e-3, "weight_decay": 0.01, "save_steps": 2,
        "logging_steps": 2, "tokens_per_batch": 100, "eval_steps": 3, **changes,
    })  # fmt: skip
    chosen = objective or Trees()
    if chosen.needs:
        fit(lm, tree_rows(pairs()), chosen, wanted, out=out, seed=3, callbacks=callbacks,
            reference=lm_with(model_of(family, 1), fingerprint="reference"))  # fmt: skip
    else:
        fit(lm, tree_rows(texts()), chosen, wanted, out=out, seed=3, callbacks=callbacks, eval_rows=tree_rows(texts(7)))
    return lm


def apart(a: Path, b: Path) -> float:
    name = "adapter_model.safetensors" if (a / "adapter_config.json").is_file() else "model.safetensors"
    one, other = load_file(a / name), load_file(b / name)
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def assert_like_one(two: Path, one: Path) -> None:
    """Weights that moved by up to 6e-3, and what is said of them."""
    assert apart(two, one) < 1e-6
    for line, expected in zip(lines_of(two), lines_of(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-4), line
    assert Artifact.load(two).key == Artifact.load(one).key
    assert not (two / "checkpoints").exists()


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process makes of `run` as it stands."""
    out = tmp_path_factory.mktemp("one") / "run"
    run(out)
    return out


LORA = {"peft": PeftOptions(r=4)}
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "all weights": ({}, {}),
    "adapter": (LORA, {}),
    "sharded": ({}, SHARDED),
    "sharded adapter": ({**LORA, "gradient_checkpointing": True}, SHARDED),
    "sharded, untied": ({"family": "qwen3", "max_steps": 2}, SHARDED),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(tmp_path, one, case: str):
    changes, env = CASES[case]
    if changes:
        one = tmp_path / "one"
        run(one, **changes)
    ended = launched(tmp_path, lambda rank: weights_of(run(tmp_path / "two", **changes)), env=env)
    assert [code for code, _ in ended] == [0, 0], ended
    assert_like_one(tmp_path / "two", one)
    stored = {} if "peft" in changes else weights_of(load(tmp_path / "two", dtype="float32"))
    for _, held in ended:  # every process goes on with what it trained
        assert all(torch.equal(held[name], value) for name, value in stored.items())


@pytest.mark.parametrize("env", [{}, SHARDED], ids=["whole", "sharded"])
def test_a_process_without_rows_of_its_own_takes_part(tmp_path, env: dict[str, str]):
    few: dict[str, Any] = {"examples_per_step": 2, "max_steps": 2}
    run(tmp_path / "one", **few)
    ended = launched(tmp_path, lambda rank: run(tmp_path / "three", **few) and None, count=3, env=env)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert_like_one(tmp_path / "three", tmp_path / "one")


@pytest.mark.parametrize(("logps", "env"), [("cached", {}), ("live", SHARDED)])
def test_a_reference_is_asked_by_every_process_for_its_own_rows(tmp_path, logps: str, env: dict[str, str]):
    run(tmp_path / "one", objective=Preferences())
    work = {"objective": Preferences(), "reference_logps": logps}
    ended = launched(tmp_path, lambda rank: run(tmp_path / "two", **work) and None, env=env)
    assert [code for code, _ in ended] == [0, 0], ended
    assert apart(tmp_path / "two", tmp_path / "one") < 1e-6


@pytest.mark.parametrize(("before", "after", "env"), [(2, 2, {}), (1, 2, {}), (2, 1, SHARDED), (2, 2, SHARDED)])
def test_killed_in_any_number_of_processes_a_run_goes_on_in_another(tmp_path, one, before: int, after: int, env: dict):
    out = tmp_path / "run"

    def dies(rank: int) -> None:
        run(out, *([At(5, kill)] if rank == before - 1 else []))

    ended = launched(tmp_path, dies, count=before, env=env)
    assert ended[-1][0] == -signal.SIGKILL
    if before > 1:
        assert "LostProcess: one of 2 processes is gone\n  hint: killed, or out of memory?" in ended[0][1]
    kept = [p.name for p in finished_checkpoints(tmp_path / "run.part" / "checkpoints")]
    assert kept == ["step-00000002", "step-00000004"]
    ended = launched(tmp_path, lambda rank: run(out, At(4, kill)) and None, count=after, env=env)  # never again at 4
    assert [code for code, _ in ended] == [0] * after, ended
    assert_like_one(out, one)


def test_a_signal_to_one_process_stops_all_at_the_same_step_with_a_checkpoint(tmp_path, one):
    out = tmp_path / "run"
    ended = launched(tmp_path, lambda rank: run(out, *([At(3, terminate)] if rank == 1 else [])))
    assert [code for code, _ in ended] == [130, 130]
    kept = [p.name for p in finished_checkpoints(tmp_path / "run.part" / "checkpoints")]
    assert kept == ["step-00000002", "step-00000003"]
    assert json.loads((tmp_path / "run.part" / "manifest.json").read_text())["state"] == "interrupted"
    run(out)
    assert_like_one(out, one)


class Refuses(Trees):
    """Does not like the third step, in one process only."""

    __slots__ = ()
    calls = 0

    def __call__(self, batch: TokenBatch) -> Any:
        Refuses.calls += 1
        if os.environ.get("RANK") == "1" and Refuses.calls == 3:
            raise UserError("nobody can learn this", "row 7", "another row")
        return super().__call__(batch)


@pytest.mark.parametrize("env", [{}, SHARDED], ids=["whole", "sharded"])
def test_what_goes_wrong_in_one_process_is_said_by_the_first_and_ends_all(tmp_path, env, monkeypatch):
    if env:
        monkeypatch.setattr(ranks, "ANSWER", timedelta(seconds=0.2))
    ended = launched(tmp_path, lambda rank: run(tmp_path / "run", objective=Refuses()), env=env)
    assert ended[0] == (3, "UserError: row 7: nobody can learn this\n  hint: another row")
    # Who fails between shards is not heard before it is gone, and so speaks for itself.
    assert ended[1] == (ended[0] if env else (2, None))
    assert json.loads((tmp_path / "run.part" / "manifest.json").read_text())["error"].startswith("row 7: nobody")


def test_what_goes_wrong_before_the_processes_meet_is_said_too(tmp_path):
    def work(rank: int) -> None:
        rows = tree_rows(texts()) if rank == 0 else Dataset.from_dict({"text": ["no tree"]})
        fit(lm_with(model_of("llama")), rows, Trees(), config(), out=tmp_path / "run")

    (first, said), (second, silent) = launched(tmp_path, work)
    assert (first, second, silent) == (3, 2, None)
    assert said.startswith("DataError: ")
    assert "tree" in said


def test_a_result_that_another_machine_would_not_see_is_refused(tmp_path, monkeypatch):
    def work(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(Path, "is_dir", lambda path: False)
        run(tmp_path / "run")

    (_, said), (code, _) = launched(tmp_path, work)
    assert "run.part: another machine does not see it\n  hint: an --out on a file system that all" in said
    assert code == 2


def test_processes_that_do_not_begin_alike_are_refused(tmp_path):
    def work(rank: int) -> None:
        fit(lm_with(model_of("llama", seed=rank)), tree_rows(texts()), Trees(), config(), out=tmp_path / "run")

    (_, said), (code, _) = launched(tmp_path, work)
    assert "began with different weights" in said
    assert code == 2


class Made:
    """Rounds whose rows depend on the weights that made them; `diary` says in which process."""

    count = 2
    fingerprint = "rounds of processes"

    def __init__(self, diary: Path) -> None:
        self.diary = diary

    def __call__(self, round: int, lm: Any) -> Dataset:
        print(round, os.environ.get("RANK", "alone"), file=self.diary.open("a"))
        seen = sum(float(p.detach().double().abs().sum()) for p in lm.model.parameters())
        return tree_rows([leaf(ids_of(30 + i, derive(7, round, i, f"{seen:.4g}") % 2**31)) for i in range(6)])


def rounds(out: Path, diary: Path) -> None:
    wanted = config(max_steps=-1, learning_rate=1e-3)
    fit(lm_with(model_of("llama")), Made(diary), Trees(), wanted, out=out)


def test_rounds_are_made_by_the_first_process_for_all(tmp_path):
    rounds(tmp_path / "one", tmp_path / "diary")
    ended = launched(tmp_path, lambda rank: rounds(tmp_path / "two", tmp_path / "diary"))
    assert [code for code, _ in ended] == [0, 0], ended
    assert (tmp_path / "diary").read_text().splitlines() == ["0 alone", "1 alone", "0 0", "1 0"]
    assert apart(tmp_path / "two", tmp_path / "one") < 1e-6


def test_rounds_and_views_of_sharded_weights_are_refused(tmp_path):
    ended = launched(tmp_path, lambda rank: rounds(tmp_path / "run", tmp_path / "diary"), env=SHARDED)
    assert "--use_fsdp: rounds need whole weights to make their rows" in ended[0][1]

    def view(rank: int) -> None:
        lm = lm_with(model_of("llama"))
        fit(lm, tree_rows(pairs()), Preferences(), config(**LORA), out=tmp_path / "b", reference=lm.with_adapter(None))

    ended = launched(tmp_path, view, env=SHARDED)
    assert "reference: a view of the model whose weights are split cannot be one" in ended[0][1]


def test_diverging_rows_are_named_though_each_process_sees_its_own(tmp_path, monkeypatch):
    def work(rank: int) -> None:
        rows = [*texts(3), Segment(ids_of(5, 1), [1.0, 1.0, float("nan"), 1.0, 1.0]), *texts(4)]
        wanted = config(examples_per_step=8, shuffle=False)
        fit(lm_with(model_of("llama")), tree_rows(rows), Trees(), wanted, out=tmp_path / "run")

    ended = launched(tmp_path, work)
    assert ended[0][1].startswith("UserError: row 4: the loss is nan at step 1"), ended
    assert ended[1] == (2, None)


def test_accelerate_launch_starts_the_command_in_shards_and_one_process_speaks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(lm_of("llama"), "base")
    rows = [{"prompt": f"q{i}", "completion": "yes" * (1 + i % 3)} for i in range(12)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "train sft --model base --data rows.jsonl --examples-per-step 4 --precision fp32 --learning-rate 1e-4 --out"
    assert in_a_child(lambda: os._exit(command([*words.split(), "one"]))) == 0
    launch = f"--config_file {ROOT}/examples/fsdp2.yaml --num_processes 2 --main_process_port 0 -m maypole.cli.main"
    started = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), *words.split(), "two"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(started, env=env, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("result") == 1
    assert ended.stderr.count("parameters learn") == 1
    assert apart(Path("one"), Path("two")) < 1e-6
    assert load("two").fingerprint == Artifact.load("one").key


def test_launches_in_the_docs_are_such_as_accelerate_and_maypole_take():
    text = (ROOT / "docs" / "several-machines.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("accelerate launch ")]
    assert len(lines) == 5
    for words in lines:
        launch = _launch(words)
        assert (launch.no_python, launch.training_script) == (True, "maypole")
        assert parse(launch.training_script_args, None, COMMANDS).function is not None
    (file,) = {launch.config_file for launch in map(_launch, lines) if launch.config_file}
    settings: Any = load_config_from_file(str(ROOT / file))
    assert settings.fsdp_config["fsdp_version"] == 2


def _launch(words: list[str]) -> Any:
    return launch_command_parser().parse_args(words[2:])
