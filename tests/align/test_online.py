"""The online loop: fresh samples of the policy as it is, judged, made into rows, trained on, and kept."""

import numpy as np

from maypole.data import PAIR, SAMPLES
from tests.align.online_fixtures import low_bytes, rows_of, run, samples_of
from tests.train.train_fixtures import lines_of


def test_every_round_keeps_its_samples_and_the_rows_made_of_them(tmp_path):
    artifact, _ = run(tmp_path / "out")
    assert artifact.finished
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    seen = [sample["row"] for sample in samples_of(tmp_path / "out", 0)]
    assert sorted(seen) == list(range(8))
    for round in range(3):
        samples = {s["prompt"]: s for s in samples_of(tmp_path / "out", round)}
        for sample in samples.values():
            SAMPLES.check(sample)
            assert sample["version"] == round
            assert sample["source"] == ["sample"] * 3
            assert sample["scores"] == low_bytes([], sample["completions"])
        for row in rows_of(tmp_path / "out", round):
            PAIR.check(row)
            sample = samples[row["prompt"]]
            best, worst = np.argmax(sample["scores"]), np.argmin(sample["scores"])
            assert row["chosen_ids"] == sample["completion_ids"][best]
            assert row["rejected_ids"] == sample["completion_ids"][worst]
            assert row["prompt_ids"] == sample["prompt_ids"]
    lines = lines_of(tmp_path / "out")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 7))
    assert [(line["step"], line["round"], line["rows"]) for line in lines if "round" in line] == [
        (1 + 2 * round, round, len(rows_of(tmp_path / "out", round))) for round in range(3)
    ]
