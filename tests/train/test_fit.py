"""What `fit` gives back, says on the way, and counts."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from maypole.core.artifact import Artifact
from maypole.models import load, save
from maypole.models.peft_options import PeftOptions
from maypole.train import fit, save_result
from maypole.train.tokens import tokenize
from tests.engine.engine_fixtures import byte_tokenizer
from tests.tiny_models import model_of
from tests.train.train_fixtures import (
    Trees,
    config,
    ids_of,
    leaf,
    lines_of,
    lm_with,
    passed,
    store_of,
    tree_rows,
    weights_of,
)

ROWS = [leaf(ids_of(5 + i % 9, i)) for i in range(20)]
HELD_OUT = [leaf(ids_of(9, 100 + i), weight=1.0 + i) for i in range(5)]


def test_evaluation_happens_when_asked_for_and_once_at_the_end(tmp_path):
    lm = lm_with(model_of("llama"))
    wanted = config(max_steps=5, eval_steps=2)
    artifact = fit(lm, tree_rows(ROWS), Trees(), wanted, out=tmp_path / "out", eval_rows=tree_rows(HELD_OUT))
    measured = [line for line in lines_of(tmp_path / "out") if "eval_loss" in line]
    assert [line["step"] for line in measured] == [2, 4, 5]
    store = store_of(tree_rows(HELD_OUT), Trees(), lm)
    loss, _ = passed(lm, tree_rows(HELD_OUT), Trees())
    expected = loss / store.weight_of(np.arange(len(store)))
    assert measured[-1]["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert measured[-1]["eval_nll"] == pytest.approx(expected, rel=1e-5)
    assert artifact.manifest["metrics"]["eval_loss"] == measured[-1]["eval_loss"]
    steps = [line["step"] for line in lines_of(tmp_path / "out") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]
    assert len(lines_of(tmp_path / "out")) == 8


def test_lines_hold_what_a_reader_needs_and_the_last_epoch_is_whole(tmp_path):
    lm = lm_with(model_of("llama"))
    fit(lm, tree_rows(ROWS), Trees(), config(max_steps=-1, num_train_epochs=2.0), out=tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert len(lines) == 10
    assert set(lines[0]) == {"step", "loss", "nll", "grad_norm", "learning_rate", "tokens", "epoch"}
    assert lines[-1]["epoch"] == 2.0
    assert lines[-1]["tokens"] == 2 * sum(len(tree.ids) for tree in ROWS)
    assert all(line["nll"] == pytest.approx(line["loss"], rel=1e-6) for line in lines)


def test_an_open_artifact_stays_its_owners_to_finish(tmp_path):
    lm = lm_with(model_of("llama"))
    with Artifact.open(tmp_path / "out", kind="mine", config={"a": 1}) as artifact:
        fit(lm, tree_rows(ROWS), Trees(), config(save_steps=2), out=artifact)
        assert not artifact.finished
        kept = {p.name for p in artifact.path.iterdir()}
        assert {"checkpoints", "metrics.jsonl", "plan.json"} <= kept
        assert not {"model.safetensors", "README.md"} & kept
        assert artifact.manifest["metrics"]["steps"] == 5
        assert lm.fingerprint == artifact.key
        save_result(lm, artifact, artifact.manifest["metrics"])
        artifact.finish({"mine": 2})
    assert Artifact.load(tmp_path / "out").manifest["metrics"] | {"steps": 5, "mine": 2} == artifact.manifest["metrics"]
    fresh = lm_with(model_of("llama"))
    fit(fresh, tree_rows(ROWS), Trees(), config(save_steps=2), out=artifact)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(fresh).values(), weights_of(lm).values()))


def test_the_base_version_counts_steps_that_move_the_base(tmp_path):
    lm = lm_with(model_of("llama"))
    fit(lm, tree_rows(ROWS), Trees(), config(), out=tmp_path / "whole")
    assert lm.base_version == 5
    fit(lm, tree_rows(ROWS), Trees(), config(peft=PeftOptions(r=2)), out=tmp_path / "adapter")
    assert lm.base_version == 5


def test_a_result_is_a_checkpoint_with_a_card_of_numbers_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["maypole", "train", "sft", "--out", "out"])
    save(lm_with(model_of("llama")), tmp_path / "base")
    lm = load(tmp_path / "base")
    artifact = fit(lm, tree_rows(ROWS), Trees(), config(), out=tmp_path / "out")
    card = (artifact.path / "README.md").read_text()
    assert card.startswith("---\nbase_model: base\nlibrary_name: transformers\n")
    assert "| loss |" in card
    assert "maypole train sft --out out" in card
    assert load(artifact.path).fingerprint == artifact.key == lm.fingerprint


def test_callbacks_are_transformers_own(tmp_path):
    seen: list[str] = []

    class Spy(TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            seen.append("begin")

        def on_step_end(self, *args, **kwargs) -> None:
            seen.append("step")

        def on_train_end(self, *args, **kwargs) -> None:
            seen.append("end")

    fit(lm_with(model_of("llama")), tree_rows(ROWS), Trees(), config(), out=tmp_path / "out", callbacks=[Spy()])
    assert seen == ["begin", *["step"] * 5, "end"]


def test_rows_are_tokenised_once_per_content_objective_tokenizer_and_length(monkeypatch):
    calls: list[int] = []
    made = Trees.segments
    monkeypatch.setattr(Trees, "segments", lambda self, row, tokenizer: calls.append(1) or made(self, row, tokenizer))
    rows, tokenizer = tree_rows([leaf(ids_of(7, 900 + i)) for i in range(3)]), byte_tokenizer()
    first = tokenize(rows, Trees(), tokenizer, 64)
    again = tokenize(rows, Trees(), byte_tokenizer(), 64)
    assert len(calls) == 3
    assert first.ids.tolist() == again.ids.tolist()
    tokenize(rows, Trees(), tokenizer, 65)
    tokenizer.chat_template = "another"
    tokenize(rows, Trees(), tokenizer, 64)
    rows._fingerprint = "other rows"
    tokenize(rows, Trees(), tokenizer, 64)
    assert len(calls) == 12
