"""The same rows, the same batch: trl's SFTTrainer and ours have one loss and one gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from maypole.train import Chats, Completions, LanguageModeling, Objective, fit
from maypole.train.batch import pack
from tests.engine.engine_fixtures import lm_of
from tests.train.train_fixtures import config, farthest, lines_of, passed, store_of

WORDS = ["the", "maypole", "stands", "on", "the", "green", "and", "every", "ribbon", "has", "its", "own", "colour"]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def phrase(length: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


COMPLETIONS = [{"prompt": phrase(1 + i, i), "completion": " " + phrase(7 - i, 10 + i)} for i in range(6)]
TEXTS = [{"text": phrase(2 + 3 * i, i)} for i in range(6)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": phrase(3, i)}, {"role": "assistant", "content": phrase(2 + i, i + 20)},
            {"role": "user", "content": phrase(2, i + 40)}, {"role": "assistant", "content": phrase(4, i + 60)},
        ]
    }
    for i in range(6)
]  # fmt: skip


def trl_trainer(lm: Any, rows: list[dict], tmp_path: Any, **changes: Any) -> SFTTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path / "trl"), "per_device_train_batch_size": 6, "use_cpu": True, "report_to": "none",
        "activation_checkpointing": False, "bf16": False, "max_length": None, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, **changes,
    }  # fmt: skip
    known = {name: value for name, value in settings.items() if name in SFTConfig.__dataclass_fields__}
    return SFTTrainer(
        model=lm.model, args=SFTConfig(**known), train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    ("objective", "rows", "options"),
    [
        (Completions(), COMPLETIONS, {"completion_only_loss": True}),
        (LanguageModeling(), TEXTS, {}),
        (Chats(), CHATS, {"assistant_only_loss": True}),
    ],
    ids=["completions", "texts", "chats"],
)
def test_loss_and_gradients_equal_trls(objective: Objective, rows: list[dict], options: dict, family: str, tmp_path):
    lm = lm_of(family)
    lm.tokenizer.chat_template = TEMPLATE
    ours = Dataset.from_list(rows)
    store = store_of(ours, objective, lm)
    loss, gradients = passed(lm, ours, objective)
    denominator = store.weight_of(np.arange(len(store)))
    trainer = trl_trainer(lm, rows, tmp_path, **options)
    inputs = next(iter(trainer.get_train_dataloader()))
    mine = {tuple(store.ids[a:b].tolist()) for a, b in map(store.bounds, range(len(store)))}
    masks = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
    assert {tuple(row[mask.bool()].tolist()) for row, mask in zip(inputs["input_ids"], masks)} == mine
    counted = int((inputs["labels"][:, 1:] != -100).sum())
    assert counted == len(pack(store, np.arange(len(store))).source)
    lm.model.zero_grad()
    theirs = trainer.compute_loss(lm.model, inputs, num_items_in_batch=torch.tensor(counted))
    theirs.backward()
    assert loss / denominator == pytest.approx(float(theirs.detach()), rel=1e-5)
    expected = {n: p.grad * denominator for n, p in lm.model.named_parameters() if p.grad is not None}
    assert farthest(gradients, expected) < 1e-5


def test_a_run_has_the_losses_of_trls_run(tmp_path):
    steps, rate = 4, 1e-3
    theirs = lm_of("llama")
    trainer = trl_trainer(
        theirs, COMPLETIONS, tmp_path, completion_only_loss=True, max_steps=steps, learning_rate=rate,
        weight_decay=0.0, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ours = lm_of("llama")
    ours.fingerprint = "tiny"
    wanted = config(max_steps=steps, learning_rate=rate, examples_per_step=6, tokens_per_batch=100)
    fit(ours, Dataset.from_list(COMPLETIONS), Completions(), wanted, out=tmp_path / "ours")
    assert [line["loss"] for line in lines_of(tmp_path / "ours")] == pytest.approx(losses, rel=1e-4)
