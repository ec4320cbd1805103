"""What cannot be learnt is dropped and counted, or said in one error; the model stays as it was."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.models.attention import configs
from maypole.models.peft_options import PeftOptions
from maypole.train import Chats, Completions, LanguageModeling, Segment, TrainConfig, fit
from maypole.train.tokens import tokenize
from maypole.train.trainer import finished_checkpoints
from tests.engine.engine_fixtures import lm_of
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, context, ids_of, leaf, lm_with, store_of, tree_rows, weights_of


def test_rows_that_teach_nothing_are_dropped_and_counted_by_reason(tmp_path):
    rows = [
        {"prompt": "a question", "completion": " an answer"},
        {"prompt": "a question", "completion": ""},
        {"prompt": "a prompt that fills all of the context there is", "completion": " x"},
        {"prompt": "another", "completion": " answer"},
    ]
    lm = lm_of("llama")
    lm.fingerprint = "tiny"
    artifact = fit(lm, Dataset.from_list(rows), Completions(), config(max_length=30), out=tmp_path / "out")
    assert artifact.manifest["metrics"]["rows"] == 2
    assert artifact.manifest["metrics"]["dropped"] == {"empty completion": 1, "prompt fills max_length": 1}


def test_a_one_token_document_teaches_nothing():
    lm = lm_of("llama")
    store = tokenize(Dataset.from_dict({"text": ["", "a longer text"]}), LanguageModeling(), lm.tokenizer, 64)
    assert len(store) == 2  # BOS and EOS stand around the empty text: its end can be learnt
    trees = [leaf([5]), leaf([5, 6]), Segment([5, 6], [1.0, 0.0])]
    store = store_of(tree_rows(trees), Trees(), lm)
    assert store.row_index.tolist() == [1]
    assert store.dropped == {"no token to learn": 2}


def test_a_long_text_goes_on_in_the_next_row_and_no_token_is_learnt_twice():
    lm = lm_of("llama")
    text = "abcdefghijklmnopqrstuvwxyz"
    store = tokenize(Dataset.from_dict({"text": [text]}), LanguageModeling(), lm.tokenizer, 10)
    whole = tokenize(Dataset.from_dict({"text": [text]}), LanguageModeling(), lm.tokenizer, 100)
    learnt = [int(t) for r in range(len(store)) for t in store.ids[slice(*store.bounds(r))][1:]]
    assert learnt == whole.ids[1:].tolist()
    assert store.weight_of(np.arange(len(store))) == whole.weight_of(np.array([0])) == len(learnt)
    assert max(store.lengths_of(np.arange(len(store)))) == 10
    assert set(store.row_index.tolist()) == {0}


def test_no_row_left_is_an_error_with_the_reasons_and_before_the_model_is_touched(tmp_path):
    lm = lm_of("llama")
    lm.fingerprint = "tiny"
    rows = Dataset.from_dict({"prompt": ["a" * 50, "b"], "completion": ["x", ""]})
    with pytest.raises(UserError, match=r"none of 2 rows .*prompt fills max_length: 1, empty completion: 1"):
        fit(lm, rows, Completions(), config(max_length=8, peft=PeftOptions(r=2)), out=tmp_path / "out")
    assert lm.adapters == ()
    assert lm.fingerprint == "tiny"


@pytest.mark.parametrize(
    ("columns", "objective", "message"),
    [
        ({"prompt": ["a", "b"], "answer": ["c", "d"]}, Completions(), 'row 1, field "completion"'),
        ({"prompt": ["a", "b"], "completion": ["c", None]}, Completions(), 'row 2, field "completion"'),
        ({"text": [1, 2]}, LanguageModeling(), 'row 1, field "text"'),
        ({"messages": [[{"role": "user", "content": "hi"}], []]}, Chats(), 'row 2, field "messages"'),
    ],
)
def test_rows_of_the_wrong_type_are_named(columns: dict, objective, message: str, tmp_path):
    lm = lm_of("llama")
    with pytest.raises(DataError) as caught:
        fit(lm, Dataset.from_dict(columns), objective, config(), out=tmp_path / "out")
    assert message in str(caught.value)


def test_evaluation_rows_are_checked_too(tmp_path):
    lm = lm_with(model_of("llama"))
    with pytest.raises(UserError, match="eval_rows: none of 1 rows"):
        fit(lm, tree_rows([leaf([4, 5, 6])]), Trees(), config(), out=tmp_path / "a", eval_rows=tree_rows([leaf([4])]))


class Poison(TrainerCallback):
    """Makes the embedding of one token NaN when a step begins."""

    def __init__(self, lm, token: int, step: int) -> None:
        self.lm, self.token, self.step = lm, token, step

    @torch.no_grad()
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.lm.transformer.get_input_embeddings().weight[self.token] = float("nan")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(tmp_path):
    lm = lm_with(model_of("llama", tie_word_embeddings=False))
    trees = [leaf([4, 5, 6 + i, 7]) for i in range(8)]
    trees[2], trees[5] = leaf([4, 90, 6, 7]), leaf([4, 5, 90, 7])
    wanted = config(examples_per_step=8, save_steps=1)
    with pytest.raises(UserError, match=r"rows 3, 6: the loss is nan at step 3\n  hint: look at what they hold"):
        fit(lm, tree_rows(trees), Trees(), wanted, out=tmp_path / "out", callbacks=[Poison(lm, 90, 2)])
    saved = finished_checkpoints(tmp_path / "out.part" / "checkpoints")
    assert [p.name for p in saved] == ["step-00000001", "step-00000002"]
    assert lm.fingerprint is None  # its weights moved, and the run is not whole
    assert not lm.model.training


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    lm = lm_with(model_of("llama"))
    parameter = next(lm.model.parameters())
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = weights_of(lm)
    with pytest.raises(UserError, match=r"the gradient's norm is (inf|nan) at step 1\n  hint: a lower --learning-rate"):
        fit(lm, tree_rows([leaf(ids_of(9, 0))]), Trees(), config(), out=tmp_path / "out")
    hook.remove()
    assert all(torch.equal(p, before[n]) for n, p in weights_of(lm).items())
    assert all(p.grad is None for p in lm.model.parameters())


def test_an_error_leaves_flags_attention_mode_and_settings_as_they_were(tmp_path):
    lm = lm_with(model_of("gemma2").to(torch.bfloat16))
    for parameter in list(lm.model.parameters())[:3]:
        parameter.requires_grad_(False)

    def state() -> tuple:
        seen = [(c._attn_implementation, c.use_cache, "_maypole_strict" in vars(c)) for c in configs(lm.model)]
        parameters = [(p.requires_grad, p.dtype, p.grad is None) for p in lm.model.parameters()]
        return seen, parameters, lm.model.training, lm.transformer.is_activation_checkpointing

    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            raise RuntimeError("stop here")

    before = state()
    wanted = config(gradient_checkpointing=True)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(lm, tree_rows([leaf(ids_of(9, 0))]), Trees(), wanted, out=tmp_path / "a", callbacks=[Stop()])
    assert state() == before
    fit(lm, tree_rows([leaf(ids_of(9, 0))]), Trees(), config(max_steps=1), out=tmp_path / "b")
    after = state()
    assert (after[0], after[2:]) == (before[0], before[2:])


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["maypole.train.trackers"], "find_spec", lambda name: None)
    lm = lm_with(model_of("llama"))
    with pytest.raises(UserError, match=r"--report-to: the package tensorboard is not installed\n  hint: pip install"):
        fit(lm, tree_rows([leaf([4, 5])]), Trees(), config(report_to=("tensorboard",)), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed: DeepSpeed is not available\n  hint: --use_fsdp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "--use_fsdp: FSDP 1 is not available"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "--fsdp_activation_checkpointing: .*\n.*--gradient-checkpointing",
        ),
        ({}, "WORLD_SIZE is set, and RANK is not"),
    ],
)
def test_launches_that_cannot_work_are_refused(tmp_path, monkeypatch, wanted: dict, says: str):
    for name, value in {"WORLD_SIZE": "2", **wanted}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        fit(lm_with(model_of("llama")), tree_rows([leaf([4, 5])]), Trees(), config(), out=tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0}, {"examples_per_step": 0}, {"max_steps": 0}, {"num_train_epochs": 0.0, "max_steps": -1},
        {"lr_scheduler_type": "steep"}, {"precision": "fp8"}, {"tokens_per_batch": 0}, {"max_length": 1},
        {"warmup_ratio": 1.0}, {"max_grad_norm": -1.0}, {"report_to": ("paper",)}, {"optimizer": "new"},
        {"reference_logps": "never"},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_name_themselves(changes: dict):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**changes)
    assert caught.value.field == next(iter(changes))


def test_a_tree_without_scored_tokens_is_dropped():
    lm = lm_of("llama")
    store = store_of(tree_rows([context([5, 6], context([7]), context([8])), context([5], leaf([6]))]), Trees(), lm)
    assert store.row_index.tolist() == [1]
    assert store.dropped == {"no token to learn": 1}


def test_rows_longer_than_the_model_has_positions_for_are_not_promised(tmp_path, caplog):
    lm, rows = lm_with(model_of("llama")), tree_rows([leaf(ids_of(9, i)) for i in range(8)])
    fit(lm, rows, Trees(), config(max_steps=1, max_length=lm.max_length), out=tmp_path / "one")
    assert "positions" not in caplog.text
    fit(lm, rows, Trees(), config(max_steps=1, max_length=lm.max_length + 1), out=tmp_path / "two")
    assert f"max_length {lm.max_length + 1}: the model has positions for {lm.max_length}" in caplog.text
