"""Kill an online run anywhere: the same call ends with the same files, and nothing is drawn or judged twice."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maypole.align import judging
from maypole.align import online as loop
from maypole.align.measuring import Evaluation
from maypole.align.online import OnlineRounds
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.core.seeds import derive
from maypole.engine import Engine
from maypole.train.trainer import PackedTrainer
from tests.align.online_fixtures import LEARNERS, given_pairs, prompts, run, training
from tests.train.test_resume import assert_same, in_a_child, kill

HELD_TO: dict[str, dict[str, Any]] = {
    "adapter": {"reference": "previous", "history": "sample", "first_history": given_pairs(6)},
    "all weights": {"reference": "initial"},
}  # fmt: skip
BOUNDARY: dict[str, dict[str, Any]] = {
    "adapter": {"optimizer": "fresh", "init": "initial", "max_steps": 12}, "all weights": {"optimizer": "continue"},
}  # fmt: skip
CHUNK = 3
"""Of eight prompts a round: three chunks, the last one not full."""


def again(out: Path, learner: str) -> None:
    """The same call: four steps a round, a checkpoint at every third step and at the end of a round."""
    train = training(examples_per_step=2, save_steps=3, **BOUNDARY[learner], **LEARNERS[learner])
    run(out, train=train, eval_prompts=prompts(4), eval_max_tokens=4, **HELD_TO[learner])


def kill_before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """In this process, calling the function `name` of `owner` is the end where `when` says so of the arguments."""
    original = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        return kill() if when(*args, **kwargs) else original(*args, **kwargs)

    setattr(owner, name, dying)


def _second_chunk_of_round_1(rounds: Any, samples: list[dict[str, Any]]) -> bool:
    return samples[0]["version"] == 1 and samples[0]["row"] == rounds._chosen[1][CHUNK]


# In the order of a run: where it is killed, how, and what lies in the unfinished directory then and what does not yet.
KILLS: dict[str, tuple[Callable[[], None], list[str], list[str]]] = {
    "before the first round, its evaluation drawn": (
        partial(kill_before, Evaluation, "_numbers", lambda self, rounds, answers: rounds == 0),
        ["evaluations/000.parquet"], ["evaluations/000.json", "rounds"],
    ),
    "while the first policy stands in the module again": (
        partial(kill_before, Engine, "score", lambda self, requests: True),
        ["checkpoints/initial", "checkpoints/aside-evaluation"], ["evaluations/001.parquet", "rounds/001"],
    ),
    "a round's answers measured and not kept": (
        partial(kill_before, Evaluation, "_numbers", lambda self, rounds, answers: rounds == 1),
        ["evaluations/001.parquet"], ["evaluations/001.json", "rounds/001"],
    ),
    "a chunk drawn and not judged": (
        partial(kill_before, OnlineRounds, "_judged", _second_chunk_of_round_1),
        ["checkpoints/round-001/00000000.judged.parquet", "checkpoints/round-001/00000003.drawn.parquet"],
        ["checkpoints/round-001/00000003.judged.parquet", "checkpoints/round-001/00000006.drawn.parquet"],
    ),
    "all samples kept and no rows made": (
        partial(kill_before, IterativeDPO, "rows", lambda self, samples: samples[0]["version"] == 1),
        ["rounds/001/samples.parquet"], ["rounds/001/rows.parquet", "checkpoints/round-001"],
    ),
    "rows kept and no step done": (
        partial(kill_before, PackedTrainer, "_begin_round", lambda self, round, index: round == 1),
        ["rounds/001/rows.parquet", "checkpoints/step-00000004"], ["checkpoints/step-00000005"],
    ),
    "in the middle of a round": (
        partial(kill_before, PackedTrainer, "training_step", lambda self, model, inputs, n: int(inputs["step"]) == 7),
        ["rounds/001/rows.parquet", "checkpoints/step-00000006"], ["rounds/002"],
    ),
    "trained, before the last evaluation": (
        partial(kill_before, Evaluation, "_numbers", lambda self, rounds, answers: rounds == 3),
        ["checkpoints/step-00000012", "evaluations/003.parquet"], ["evaluations/003.json", "rounds.json"],
    ),
}  # fmt: skip


@pytest.fixture
def diary(tmp_path, monkeypatch) -> Path:
    """A line for every draw and every candidate judged in a round, from all processes."""
    monkeypatch.setattr(loop, "CHUNK", CHUNK)
    path, draw, call = tmp_path / "diary", loop.draw, judging.call_reward

    def drawn(engine: Any, rows: Any, numbers: Any, *args: Any, **kwargs: Any) -> Any:
        samples = list(draw(engine, rows, numbers, *args, **kwargs))
        with path.open("a") as file:
            file.writelines(f"draw {sample['version']} {sample['row']}\n" for sample in samples)
        return samples

    def judged(judge: Any, prompts: Any, completions: Any, *args: Any, **kwargs: Any) -> Any:
        found = call(judge, prompts, completions, *args, **kwargs)
        with path.open("a") as file:
            file.writelines(f"judge {derive(0, *pair)}\n" for pair in zip(prompts, completions))
        return found

    monkeypatch.setattr(loop, "draw", drawn)
    monkeypatch.setattr(judging, "call_reward", judged)
    return path


@pytest.mark.parametrize("learner", LEARNERS)
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(tmp_path, diary, learner: str):
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    again(whole, learner)
    once = diary.read_text().splitlines()
    assert len([line for line in once if line.startswith("draw")]) == 3 * 8
    diary.unlink()
    out, part = tmp_path / "run", tmp_path / "run.part"
    for where, (dies, there, not_yet) in KILLS.items():

        def die(dies: Callable[[], None] = dies) -> None:
            dies()
            again(out, learner)

        assert in_a_child(die) == -signal.SIGKILL, where
        assert not out.exists()
        assert [name for name in there if not (part / name).exists()] == [], where
        assert [name for name in not_yet if (part / name).exists()] == [], where
    again(out, learner)
    assert_same(out, whole)
    assert diary.read_text().splitlines() == once
