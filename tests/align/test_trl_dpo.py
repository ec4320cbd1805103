"""Fed the same batches, a run has the losses of trl's DPOTrainer, step by step."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.train import fit
from tests.engine.engine_fixtures import lm_of
from tests.train.train_fixtures import config, lines_of

STEPS, PAIRS, RATE = 20, 4, 3e-3
WORDS = ["the", "maypole", "stands", "on", "green", "and", "every", "ribbon", "has", "its", "own", "colour"]


def phrase(length: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


ROWS = [
    {"prompt": phrase(1 + i % 5, i), "chosen": f" {phrase(1 + i % 4, 50 + i)}", "rejected": f" {phrase(4, 90 + i)}"}
    for i in range(20)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


def trls(tmp_path: Any, **settings: Any) -> list[dict[str, float]]:
    """What trl logs at every step."""
    lm = lm_of("llama")
    options = DPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=STEPS, per_device_train_batch_size=PAIRS, learning_rate=RATE,
        lr_scheduler_type="linear", weight_decay=0.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none", max_length=None,
        disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = DPOTrainer(
        lm.model, ref_model=deepcopy(lm.model), args=options, train_dataset=Dataset.from_list(ROWS),
        processing_class=lm.tokenizer,
    )  # fmt: skip
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({"loss_type": ["sigmoid"], "beta": 0.1}, PreferenceOptions()),
        ({"loss_type": ["ipo"], "beta": 0.5}, PreferenceOptions(loss="ipo", beta=0.5)),
        ({"loss_type": ["hinge"], "beta": 0.2}, PreferenceOptions(loss="hinge", beta=0.2)),
        (
            {"loss_type": ["robust"], "label_smoothing": 0.1, "precompute_ref_log_probs": True},
            PreferenceOptions(loss="robust"),
        ),
    ],
    ids=["dpo", "ipo", "hinge", "robust"],
)
def test_twenty_steps_have_the_losses_and_metrics_of_trls(theirs: dict, options: PreferenceOptions, tmp_path):
    lm = lm_of("llama")
    wanted = config(max_steps=STEPS, examples_per_step=PAIRS, learning_rate=RATE, shuffle=False)
    fit(lm, Dataset.from_list(ROWS), objective_of(options), wanted, out=tmp_path / "ours", reference="initial")
    ours, trl = lines_of(tmp_path / "ours"), trls(tmp_path, **theirs)
    assert len(ours) == len(trl) == STEPS
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/accuracies", "learning_rate"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in trl], rel=1e-3), name
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in trl], rel=1e-3, abs=1e-4), name
    assert abs(ours[-1]["loss"] - ours[0]["loss"]) > 0.01 * abs(ours[0]["loss"])
