"""What a run would do, found out without a step of it. Knows nothing about files or commands.

The model gets its adapter and the first rows become tokens, so that what would stop the run stops this too.
"""

import tempfile
from pathlib import Path

from datasets import Dataset

from maypole.core.config import DryRun
from maypole.models.adapters import merged
from maypole.models.forward import self_test
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.estimate import estimate
from maypole.train.fit import decisions
from maypole.train.objective import Objective
from maypole.train.planner import Order
from maypole.train.reference import Earlier, check_view, self_test_apart
from maypole.train.source import Source
from maypole.train.trainable import become, make_trainable

_RECORDS = ("README.md", "config.yaml", "manifest.json", "metrics.jsonl", "run.log")


def dry_run(
    lm: LanguageModel,
    rows: Dataset,
    of: int,
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    reference: LanguageModel | Earlier | None = None,
) -> DryRun:
    """The plan for data that begins with `rows` and has `of` in all; its steps assume that the rest is like them.

    A `reference` that is a model of its own counts as memory that is taken before the first step.
    """
    if isinstance(reference, LanguageModel):
        check_view(reference, lm, config)
    if config.peft is not None and lm.adapters:
        become(lm, merged(lm))  # or it would be saved beside the new adapter
    with tempfile.TemporaryDirectory() as folder:
        make_trainable(lm, config, seed, Path(folder))
        self_test(lm.model)
        self_test_apart(reference, lm)
        source = Source(rows, objective, lm, config, seed=seed, folder=Path(folder))
    if config.max_steps < 0:
        whole = max(1, round(len(source.store) * of / len(rows)))
        source.steps = Order(whole, config.examples_per_step, config.num_train_epochs, seed).steps
    expected = estimate(lm, source, decisions(lm, source, config))
    return DryRun(
        rows_kept=len(rows) - sum(source.store.dropped.values()),
        rows_dropped=dict(source.store.dropped),
        steps=source.steps,
        minutes=round(expected.seconds / 60, 2),
        peak_memory_bytes=expected.peak_memory_bytes,
        files=(*_weights(lm), "tokenizer.json", *_RECORDS),
    )


def _weights(lm: LanguageModel) -> tuple[str, str]:
    return ("adapter_config.json", "adapter_model.safetensors") if lm.adapters else ("config.json", "model.safetensors")
