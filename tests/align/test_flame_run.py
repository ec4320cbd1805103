"""The whole of FLAME as one result: what it leaves, what it measures, and that a killed run just goes on."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from maypole.align import fact_pairs, self_writing
from maypole.align.flame import AFTER, BEFORE, SFT, _Run, flame
from maypole.align.flame_options import FlameConfig
from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError, UserError
from maypole.models.language_model import LanguageModel
from maypole.train.trainer import PackedTrainer
from tests.align.flame_fixtures import CHECKER, base, config, instructions, never, score, who
from tests.align.online_fixtures import LORA, training
from tests.align.test_online_resume import kill_before
from tests.train.test_resume import assert_same, in_a_child


def evaluation() -> Dataset:
    return instructions(6).remove_columns(["completion"])


def run(out: Path, *, lm: LanguageModel | None = None, settings: FlameConfig | None = None, **changes: Any) -> Artifact:
    given: dict[str, Any] = {"classify": who, "eval_prompts": evaluation(), **changes}
    data = instructions()
    return flame(
        lm or base(), data, data.remove_columns(["completion"]), score, CHECKER, given.pop("classify"),  # type: ignore
        settings or config(), out=out, seed=5, **given,
    )  # fmt: skip


def test_one_result_holds_what_was_learnt_and_what_was_measured(tmp_path):
    artifact = run(tmp_path / "out")
    assert artifact.finished
    assert (artifact.path / "adapter_model.safetensors").is_file()
    assert Artifact.load(artifact.path / "sft").finished
    assert artifact.manifest["children"] == {"sft": Artifact.load(artifact.path / "sft").key}
    rows = pq.read_table(artifact.path / "sft.parquet").to_pylist()
    assert {row["source"] for row in rows if not row["fact_based"]} == {"given"}
    pairs = pq.read_table(artifact.path / "pairs.parquet").to_pylist()
    assert {row["kind"] for row in pairs} == {"if", "fact"}
    facts = json.loads((artifact.path / "facts.json").read_text())
    assert list(facts) == [BEFORE, SFT, AFTER]
    for name, numbers in facts.items():
        assert {"precision", "score", "correct", "errors", "respond_ratio", "words", "judged"} <= set(numbers)
        lines = [json.loads(line) for line in (artifact.path / "facts" / f"{name}.jsonl").read_text().splitlines()]
        assert [line["row"] for line in lines] == [1, 3, 5]
        assert numbers["answers"] == 3
        assert numbers["correct"] == sum(a["verdict"] == "supported" for line in lines for a in line["atoms"]) / 3
    metrics = artifact.manifest["metrics"]
    assert metrics["after_precision"] == facts[AFTER]["precision"]
    assert metrics["fact_pairs"] == sum(row["kind"] == "fact" for row in pairs)
    assert metrics["fact_based"] == 4


def test_a_finished_run_is_loaded_and_not_made_again(tmp_path, monkeypatch):
    first: Any = base()
    run(tmp_path / "out", lm=first, settings=config(sft=training(max_steps=2, peft=None)))
    monkeypatch.setattr("maypole.engine.Engine.generate", lambda *args: pytest.fail("nothing is left to say"))
    again: Any = base()
    artifact = run(tmp_path / "out", lm=again, settings=config(sft=training(max_steps=2, peft=None)))
    assert artifact.finished
    ours, theirs = again.model.state_dict(), first.model.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in ours)


KILLS: dict[str, tuple[Callable[[], None], list[str], list[str]]] = {
    "while the base writes": (
        partial(kill_before, self_writing, "_completions", lambda *args: True),
        ["checkpoints/sft/00000000.json"], ["sft.parquet", "facts"],
    ),
    "before anything is measured": (
        partial(kill_before, _Run, "_measure", lambda self, name, *args: name == BEFORE),
        ["sft.parquet"], ["facts/before.json", "sft.part"],
    ),
    "in the middle of fine-tuning": (
        partial(kill_before, PackedTrainer, "training_step", lambda self, *a: self.state.global_step == 2),
        ["facts/before.json", "sft.part/checkpoints/step-00000002"], ["sft", "pairs.parquet"],
    ),
    "while pairs are made": (
        partial(kill_before, fact_pairs, "judged", lambda *args, **kwargs: True),
        ["sft/manifest.json"], ["pairs.parquet", "facts/sft.json"],
    ),
    "in the middle of learning preferences": (
        partial(
            kill_before, PackedTrainer, "training_step",
            lambda self, *a: self.state.global_step == 2 and self.reference is not None,
        ),
        ["pairs.parquet", "facts/sft.json", "checkpoints/step-00000002"], ["facts/after.json"],
    ),
    "before the last measurement": (
        partial(kill_before, _Run, "_measure", lambda self, name, *args: name == AFTER),
        ["checkpoints/step-00000003"], ["facts/after.json", "facts.json"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(out)
    return out


@pytest.mark.parametrize("where", KILLS)
def test_killed_anywhere_the_same_call_ends_with_the_same_result(tmp_path, whole: Path, where: str):
    arrange, there, missing = KILLS[where]
    out = tmp_path / "out"

    def dying() -> None:
        arrange()
        run(out)

    assert in_a_child(dying) == -signal.SIGKILL
    part = tmp_path / "out.part"
    assert all((part / name).exists() for name in there), sorted(p.relative_to(part) for p in part.rglob("*"))
    assert not any((part / name).exists() for name in missing)
    run(out)
    for name in ("sft.parquet", "pairs.parquet", "facts.json", "facts/after.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert_same(out, whole)


def test_without_an_evaluation_and_without_facts_it_is_plain_fine_tuning_and_preferences(tmp_path):
    artifact = run(tmp_path / "out", classify=never, eval_prompts=None)
    rows = pq.read_table(artifact.path / "sft.parquet").to_pylist()
    assert [row["completion"] for row in rows] == instructions()["completion"]
    assert {row["kind"] for row in pq.read_table(artifact.path / "pairs.parquet").to_pylist()} == {"if"}
    assert not (artifact.path / "facts.json").exists()


def test_an_evaluation_in_which_nothing_asks_for_facts_is_refused(tmp_path):
    with pytest.raises(UserError, match="no prompt asks for facts"):
        run(tmp_path / "out", classify=never)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 1}, "--n"),
        ({"samples": 0}, "--samples"),
        ({"fact_pairs": "both"}, "--fact-pairs"),
        ({"min_gap": 2.0}, "--min-gap"),
        ({"beta": 0.0}, "--beta"),
        ({"dpo": training(peft=LORA)}, "goes on learning"),
        ({"sft": training(eval_steps=5)}, "--sft.eval-steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        config(**settings)
