"""`report_to`: what goes to metrics.jsonl goes to the tracker, and its files belong to the result."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maypole.train import fit
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, ids_of, leaf, lines_of, lm_with, tree_rows


def test_tensorboard_reads_the_numbers_of_metrics_jsonl_from_the_result(tmp_path):
    rows = tree_rows([leaf(ids_of(9 + i, i)) for i in range(8)])
    wanted = config(report_to=("tensorboard",), max_steps=4, logging_steps=2)
    fit(lm_with(model_of("llama")), rows, Trees(), wanted, out=tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    lines = lines_of(tmp_path / "out")
    for name in ("loss", "grad_norm", "learning_rate"):
        points = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines], name
