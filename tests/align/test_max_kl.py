"""A bound on the distance ends a run after the round that passed it, with that round's weights."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from maypole.align.online import OnlineRounds
from maypole.core.errors import ConfigError
from tests.align.online_fixtures import LEARNERS, prompts, run, training
from tests.align.test_online_resume import kill_before
from tests.train.test_resume import assert_same, in_a_child


def bounded(out: Path, learner: str, max_kl: float | None = 1e-6, **changes: Any) -> tuple[Any, Any]:
    train = training(lr_scheduler_type="constant", examples_per_step=4, **LEARNERS[learner])
    return run(out, train=train, eval_prompts=prompts(4), eval_max_tokens=4, max_kl=max_kl, **changes)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_weights_are_those_of_a_run_of_so_many_rounds(tmp_path, learner: str, caplog):
    with caplog.at_level(logging.WARNING):
        artifact, ended = bounded(tmp_path / "bounded", learner)
    _, one = bounded(tmp_path / "one", learner, max_kl=None, rounds=1)
    for found, wanted in zip(ended.model.parameters(), one.model.parameters()):
        assert torch.equal(found, wanted)
    metrics = artifact.manifest["metrics"]
    (line,) = json.loads((tmp_path / "bounded" / "rounds.json").read_text())
    assert metrics["ended"].startswith(f"round 0 left the policy {line['eval_kl']:.3g} nats from its start")
    assert (metrics["steps"], metrics["eval_kl"]) == (2, line["eval_kl"])
    assert f"{metrics['ended']}: the run ends here, 1 of 3 rounds done" in caplog.text
    assert not (tmp_path / "bounded" / "rounds" / "001").exists()


def test_a_run_that_stays_near_enough_is_none_the_wiser(tmp_path):
    artifact, lm = bounded(tmp_path / "bounded", "adapter", max_kl=1e3)
    _, free = bounded(tmp_path / "free", "adapter", max_kl=None)
    assert "ended" not in artifact.manifest["metrics"]
    for found, wanted in zip(lm.model.parameters(), free.model.parameters()):
        assert torch.equal(found, wanted)


def test_killed_when_it_was_about_to_end_it_ends_the_same(tmp_path):
    def again(out: Path) -> None:
        bounded(out, "all weights")

    (tmp_path / "whole").mkdir()
    again(tmp_path / "whole" / "run")

    def die() -> None:
        kill_before(OnlineRounds, "end", lambda self, lm: True)
        again(tmp_path / "run")

    assert in_a_child(die) == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    again(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole" / "run")


def test_a_bound_needs_prompts_to_measure_on(tmp_path):
    with pytest.raises(ConfigError, match="nothing without prompts to measure it on"):
        run(tmp_path / "out", max_kl=1.0)
