"""The experiments from end to end on a tiny policy: every arm, replayed and resumed, side by side on a cluster."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from maypole.align.online_offline_gap import Cell, GapConfig, Materials, gap
from maypole.align.online_offline_gap.measuring import Standing
from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError, JudgeError, UserError
from maypole.core.identity import digest
from maypole.models import load, save
from maypole.train.trainer import PackedTrainer
from tests.align.online_fixtures import LEARNERS, low_bytes, policy, prompts, rows_of, training
from tests.align.test_online_resume import kill_before
from tests.train.test_resume import in_a_child

QUICK = GapConfig(
    experiments=("gap", "coverage"), betas=(0.1,), rates=(1.0,), steps=4, eval_every=2, max_tokens=5, both_orders=False
)


def prefers(prompts: list, a: list, b: list, **columns: Any) -> list[float | None]:
    """The golden judge: it tells any two texts apart."""
    found = zip(low_bytes(prompts, a), low_bytes(prompts, b))
    return [0.9 if x > y else 0.1 if x < y else 0.5 for x, y in found]


def pairs(count: int, name: str = "pairs", **changes: str) -> Dataset:
    said = {"chosen": " poles", "rejected": " bells", **changes}
    made = Dataset.from_list([{"prompt": f"{i} ribbons and", **said} for i in range(count)])
    made._fingerprint = digest(name, str(count), repr(changes))
    return made


def materials(**changes: Any) -> Materials:
    given: dict[str, Any] = {
        "policy": policy(), "prompts": prompts(8), "pairs": pairs(10), "proxy": low_bytes, "judge": prefers,
        "eval_prompts": prompts(6), "held_out": pairs(4, "held out"),
    }  # fmt: skip
    return Materials(**{**given, **changes})


def run(out: Path, config: GapConfig = QUICK, train: Any = None, **changes: Any) -> Any:
    options = {name: changes.pop(name) for name in ("workers", "ray") if name in changes}
    train = train or training(learning_rate=3e-3, save_steps=1000)
    return gap(materials(**changes), config, train, out=out, seed=5, **options)


def weights(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of `QUICK`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run(tmp_path_factory.mktemp("whole") / "out").path


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_online_run_replayed_in_its_order_is_the_same_run_bit_for_bit(tmp_path, whole: Path, learner: str):
    whole = whole if learner == "adapter" else run(tmp_path / "out", train=training(**LEARNERS[learner])).path
    artifact = Artifact.load(whole)
    report = json.loads((artifact.path / "report.json").read_text())
    cells = artifact.path / "cells"
    online, replay, shuffled, offline = (
        cells / Cell(arm, 0.1, 1.0).name for arm in ("online", "replay", "shuffled", "offline")
    )
    assert report["replay_equals_online"] == {replay.name: True}
    assert weights(replay) == weights(online) != weights(shuffled)
    again = [rows_of(shuffled, round) for round in range(4)]
    fresh = [rows_of(online, round) for round in range(4)]
    assert [len(rows) for rows in again] == [len(rows) for rows in fresh]
    assert sorted(repr(row) for rows in again for row in rows) == sorted(repr(row) for rows in fresh for row in rows)
    points = {(p["arm"], p["step"]): p for p in pq.read_table(artifact.path / "table.parquet").to_pylist()}
    assert set(points) == {(arm, step) for arm in ("online", "offline", "replay", "shuffled") for step in (2, 4)}
    for step in (2, 4):
        same = points["online", step] | {"arm": "", "cell": "", "alike": None}
        assert same == points["replay", step] | {"arm": "", "cell": "", "alike": None}
    last = points["offline", 4]
    assert last["kl"] > 0
    assert last["pair_ties"] == 0.0
    assert artifact.manifest["children"].keys() == {f"cells/{one.name}" for one in (online, replay, shuffled, offline)}
    if learner == "all weights":
        load(online)


def test_every_arm_runs_and_the_report_says_what_became_of_them(tmp_path):
    config = GapConfig(
        experiments=("all",), betas=(0.1,), rates=(1.0,), steps=2, eval_every=2, max_tokens=4, labels="drawn",
        fresh_labels="drawn", refresh_every=2,
    )  # fmt: skip
    train = training(save_steps=1000, examples_per_step=4)
    sizes = {"other": policy(seed=3)}
    artifact = run(tmp_path / "out", config, train, prompts=prompts(8), strong=policy(seed=2), sizes=sizes)
    report = json.loads((artifact.path / "report.json").read_text())
    arms = {(line["size"], line["arm"]) for line in report["runs"]}
    assert arms == {
        ("", arm) for arm in (
            "online", "offline", "replay", "shuffled", "quality", "proximity", "best-of-2-online", "best-of-2-offline"
        )
    } | {("other", "online"), ("other", "offline")}  # fmt: skip
    compared = {(one["experiment"], one["size"]) for one in report["comparisons"]}
    assert compared >= {("loss", ""), ("scale", ""), ("scale", "other")}
    assert report["replay_equals_online"] == {"replay-beta-0.1-rate-1": True}
    assert 0 <= report["proxy_accuracy"] <= 1
    assert report["rows"]["rows/proximity.parquet"]["rows"] <= 10
    kept = pq.read_table(artifact.path / "rows" / "proximity.parquet")
    assert "chosen_ids" in kept.column_names
    page = (artifact.path / "report.html").read_text()
    assert "<script" not in page
    assert "scale other: online wins" in page
    assert (artifact.path / "gap.svg").read_text().startswith("<?xml")


def test_killed_anywhere_it_goes_on_and_makes_nothing_again(tmp_path, whole: Path):
    out = tmp_path / "out"
    training_step, at = PackedTrainer.training_step, Standing.at

    def in_the_third_run() -> None:
        kill_before(
            PackedTrainer, "training_step",
            lambda self, *rest: "replay" in str(self.checkpoints) and int(rest[1]["step"]) == 3,
        )  # fmt: skip
        run(out)

    def while_measuring() -> None:
        kill_before(Standing, "at", lambda self, step, lm: "shuffled" in str(self._folder) and step == 4)
        run(out)

    assert in_a_child(in_the_third_run) == -signal.SIGKILL
    cells = tmp_path / "out.part" / "cells"
    assert sorted(path.name for path in cells.iterdir()) == [
        "offline-beta-0.1-rate-1", "online-beta-0.1-rate-1", "replay-beta-0.1-rate-1.part",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in cells.glob("o*/*.safetensors")}
    assert in_a_child(while_measuring) == -signal.SIGKILL
    assert (cells / "replay-beta-0.1-rate-1").is_dir()
    assert (PackedTrainer.training_step, Standing.at) == (training_step, at)
    artifact = run(out)
    assert {path: path.stat().st_mtime_ns for path in before if path.exists()} == {}
    moved = [artifact.path / "cells" / path.parent.name / path.name for path in before]
    assert [path.stat().st_mtime_ns for path in moved] == list(before.values())
    for name in ("table.parquet", "report.json", "gap.svg"):
        assert (artifact.path / name).read_bytes() == (whole / name).read_bytes(), name
    assert run(out).finished


def test_runs_side_by_side_on_a_cluster_are_those_of_one_process(tmp_path):
    save(policy(), tmp_path / "base")
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def proxy(prompts, completions, **columns):\n"
        "    return [-sum(c.encode()) / (1 + len(c)) for c in completions]\n\n\n"
        "def gold(prompts, completions, **columns):\n"
        "    return [-sum(c.encode()) for c in completions]\n"
    )
    given: dict[str, Any] = {
        "policy": partial(load, str(tmp_path / "base")), "proxy": f"{judge}:proxy", "judge": f"{judge}:gold",
    }  # fmt: skip
    config = GapConfig(betas=(0.1,), rates=(1.0,), steps=2, eval_every=2, max_tokens=4)
    one = run(tmp_path / "one", config, **given)
    two = run(tmp_path / "two", config, workers=2, ray="local", **given)
    assert (two.path / "table.parquet").read_bytes() == (one.path / "table.parquet").read_bytes()
    for cell in ("online-beta-0.1-rate-1", "offline-beta-0.1-rate-1"):
        assert weights(one.path / "cells" / cell) == weights(two.path / "cells" / cell)


@pytest.mark.parametrize(
    ("changes", "config", "says"),
    [
        ({"prompts": prompts(0)}, {}, "prompts"),
        ({"prompts": prompts(3)}, {}, "at most 3, the number of prompts"),
        ({"eval_prompts": prompts(0)}, {}, "eval_prompts"),
        ({"pairs": pairs(0)}, {}, "pairs"),
        ({"proxy": prefers}, {}, "proxy and judge are the same"),
        ({}, {"experiments": ("quality",)}, "--strong"),
        ({}, {"experiments": ("scale",)}, "--sizes"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(tmp_path, changes: dict, config: dict, says: str):
    with pytest.raises(UserError, match=says):
        run(tmp_path / "out", GapConfig(**config), **changes)
    assert not (tmp_path / "out.part").exists()


def test_settings_of_training_that_the_experiments_have_themselves_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.max-steps"):
        run(tmp_path / "out", train=training(max_steps=3))


def test_pairs_that_are_all_alike_and_a_judge_that_fails_end_the_run_with_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no pair is left"):
        run(tmp_path / "alike", pairs=pairs(4, "alike", chosen="x", rejected="x"))

    with pytest.raises(JudgeError, match="row"):
        run(tmp_path / "nan", proxy=unsure)


def unsure(prompts: list, completions: list, **columns: Any) -> list[float]:
    return [float("nan")] * len(completions)
