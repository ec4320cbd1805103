"""`maypole align reward`, from the words on the command line to a directory that judges."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import transformers as hf
from datasets import Dataset

from maypole.align.reward import hold_out
from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.evaluate import judges, pair_accuracy
from maypole.evaluate.pair_model import PairModel
from maypole.evaluate.reward_model import RewardModel
from maypole.models import PeftOptions, load, new_adapter, save
from tests.engine.engine_fixtures import lm_of

COMMAND = "align reward"
TRAIN = (
    "--train.examples-per-step 8 --train.max-steps 12 --train.learning-rate 1e-2 --train.precision fp32 "
    "--train.logging-steps 1 --train.save-steps 5 --held-out 0.25"
)
ROWS = [
    {"prompt": f"question {i % 32}", "chosen": " yes" * (1 + i % 2), "rejected": " no" * (1 + i % 3)} for i in range(64)
]


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


CHATS = [
    {"prompt": said("user", row["prompt"]), **{name: said("assistant", row[name]) for name in ("chosen", "rejected")}}
    for row in ROWS
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(lm_of("llama"), folder / "base")
    lm = new_adapter(load(folder / "base"), PeftOptions(r=2), seed=0)
    save(lm, folder / "tuned")
    return folder


@pytest.fixture(autouse=True)
def _here(place, models):
    for name in ("base", "tuned"):
        Path(name).symlink_to(models / name)
    _rows("pairs.jsonl", ROWS)


def _rows(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def accuracy_of(judge: Any, rows: Dataset) -> float:
    return pair_accuracy(cast(Any, rows), judge).accuracy


def test_a_reward_model_is_measured_on_prompts_it_has_not_seen(maypole):
    code, _, err = maypole(f"--model base --data pairs.jsonl --out judge {TRAIN}")
    assert code == 0, err
    metrics = Artifact.load("judge").manifest["metrics"]
    assert metrics["pair_accuracy_low"] <= metrics["pair_accuracy"] <= metrics["pair_accuracy_high"]
    assert metrics["pair_accuracy"] > 0.9
    _, measured = hold_out(Dataset.from_list(ROWS), 0.25, seed=0)
    assert metrics["held_out_pairs"] == len(measured)
    assert metrics["rows"] == len(ROWS) - len(measured)
    judge = judges.load("judge")
    assert isinstance(judge, RewardModel)
    assert accuracy_of(judge, measured) == metrics["pair_accuracy"]
    card = Path("judge/README.md").read_text()
    assert "| pair_accuracy_low |" in card
    assert "--judge judge" in card
    assert hf.AutoModelForSequenceClassification.from_pretrained("judge").config.num_labels == 1
    code, _, err = maypole(f"--model base --data pairs.jsonl --out judge {TRAIN}")
    assert code == 0, err  # it is there


def test_a_pair_model_keeps_its_question_beside_it(maypole):
    _rows("chats.jsonl", CHATS)
    code, _, err = maypole(f"--type pair --model base --data chats.jsonl --out judge {TRAIN.replace('12', '30')}")
    assert code == 0, err
    judge = judges.load("judge")
    assert isinstance(judge, PairModel)
    _, measured = hold_out(Dataset.from_list(CHATS), 0.25, seed=0)
    found = Artifact.load("judge").manifest["metrics"]["pair_accuracy"]
    assert found == accuracy_of(judge, measured) > 0.9


@pytest.mark.parametrize("type", ["bradley-terry", "pair"])
def test_an_adapter_judges_on_its_base(maypole, type: str):
    code, _, err = maypole(
        f"--type {type} --model base --data pairs.jsonl --out judge {TRAIN} --train.peft.type lora --train.peft.r 4"
    )
    assert code == 0, err
    assert not Path("judge/model.safetensors").exists()
    judge = judges.load("judge")
    _, measured = hold_out(Dataset.from_list(ROWS), 0.25, seed=0)
    assert accuracy_of(judge, measured) == Artifact.load("judge").manifest["metrics"]["pair_accuracy"]


def test_a_score_adapter_on_a_tuned_model_brings_the_merged_base_along(maypole):
    code, _, err = maypole(f"--model tuned --data pairs.jsonl --out judge {TRAIN} --train.peft.type lora")
    assert code == 0, err
    config = json.loads(Path("judge/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path("judge/base").absolute())
    assert config["task_type"] == "SEQ_CLS"
    assert isinstance(judges.load("judge"), RewardModel)


@pytest.mark.parametrize(
    ("tied", "more"), [(True, ""), (False, ""), (False, "--train.peft.type lora --train.peft.r 4")]
)
def test_a_judge_goes_on_from_the_head_that_it_has(maypole, tied: bool, more: str):
    """At a learning rate that moves nothing it stays the judge that it was."""
    save(lm_of("llama", tie_word_embeddings=tied), Path("begun"))
    code, _, err = maypole(f"--model begun --data pairs.jsonl --out judge {TRAIN} {more}")
    assert code == 0, err
    still = TRAIN.replace("rate 1e-2", "rate 1e-12")
    code, _, err = maypole(f"--model judge --data pairs.jsonl --out same {still}")
    assert code == 0, err
    texts = [[row[name] for row in ROWS[:12]] for name in ("prompt", "chosen")]
    wanted, found = (judges.load(name)(*texts) for name in ("judge", "same"))  # type: ignore[call-arg]
    assert np.mean(wanted) > 0.5  # a fresh head gives next to nothing
    assert found == pytest.approx(wanted, abs=1e-5)
    code, _, err = maypole(f"--model judge --data pairs.jsonl --out on-top {still} --train.peft.type lora")
    assert code == 0, err
    assert judges.load("on-top")(*texts) == pytest.approx(wanted, abs=1e-4)  # type: ignore[call-arg]
    if not more:
        with pytest.raises(UserError, match="it scores texts and predicts no tokens"):
            load("judge")
    code, _, err = maypole(f"--type pair --model judge --data pairs.jsonl --out o {TRAIN}")
    assert (code, "scores texts" in err) == (2, True)


def test_pairs_given_to_measure_on_are_all_measured(maypole):
    _rows("held.jsonl", [{**row, "margin": None} for row in ROWS[:10]])
    _rows("margins.jsonl", [{**row, "margin": 0.5} for row in ROWS[10:]])
    code, _, err = maypole(
        f"--model base --data margins.jsonl --eval-data held.jsonl --out judge {TRAIN} --center 0.01"
    )
    assert code == 0, err
    metrics = Artifact.load("judge").manifest["metrics"]
    assert (metrics["held_out_pairs"], metrics["rows"]) == (10, 54)


def test_held_out_pairs_beyond_the_context_are_counted(maypole):
    _rows("held.jsonl", [*ROWS[:10], {"prompt": "x" * 600, "chosen": "a", "rejected": "b"}])
    code, _, err = maypole(f"--model base --data pairs.jsonl --eval-data held.jsonl --out judge {TRAIN}")
    assert code == 0, err
    metrics = Artifact.load("judge").manifest["metrics"]
    assert (metrics["held_out_pairs"], metrics["held_out_pairs_left_out"]) == (10, 1)


def test_a_prompt_is_never_on_both_sides():
    rows = Dataset.from_list(ROWS)
    learnt, measured = hold_out(rows, 0.3, seed=1)
    assert not set(learnt["prompt"]) & set(measured["prompt"])
    assert len(learnt) + len(measured) == len(rows)
    fewer, _ = hold_out(rows.select(range(32)), 0.3, seed=1)
    assert set(fewer["prompt"]) == set(learnt["prompt"])
    shares = [
        len(hold_out(Dataset.from_dict({"prompt": list(map(str, range(400)))}), 0.1, seed=s)[1]) for s in range(5)
    ]
    assert 0.07 < np.mean(shares) / 400 < 0.13
    with pytest.raises(UserError, match="would be held out"):
        hold_out(rows.select(range(2)), 0.01, seed=0)


def test_dry_run_says_what_would_be_done(maypole):
    code, out, err = maypole(f"--type pair --model base --data pairs.jsonl --out judge {TRAIN} --dry-run --json")
    assert code == 0, err
    plan = json.loads(out)
    _, measured = hold_out(Dataset.from_list(ROWS), 0.25, seed=0)
    assert plan["rows_kept"] == len(ROWS) - len(measured)
    assert plan["steps"] == 12
    assert "pair_question.json" in plan["files"]
    assert not Path("judge").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--type ranking", "type"),
        ("--held-out 0", "held"),
        ("--type pair --center 0.1", "center"),
        ("--columns prompt", "NAME=COLUMN"),
    ],
)
def test_settings_that_cannot_work_are_named(maypole, line: str, message: str):
    code, _, err = maypole(f"--model base --data pairs.jsonl --out judge {line}")
    assert code == 2
    assert message in err


def test_columns_are_taken_by_other_names(maypole):
    _rows("other.jsonl", [{"question": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in ROWS])
    code, out, err = maypole(f"--model base --data other.jsonl --columns prompt=question --out judge {TRAIN} --dry-run")
    assert code == 0, err + out
    code, _, err = maypole(f"--model base --data other.jsonl --out judge {TRAIN} --dry-run")
    assert code == 2
    assert "--columns prompt=question" in err
