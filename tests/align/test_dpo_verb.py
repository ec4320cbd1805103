"""`maypole align dpo`, from the words on the command line to the directory it leaves."""

import gc
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from maypole.cli.main import run
from maypole.core.artifact import Artifact
from maypole.models import PeftOptions, create, load, new_adapter, save
from maypole.train import estimate
from tests.engine.engine_fixtures import lm_of
from tests.models.conftest import logits

COMMAND = "align dpo --quiet"
TRAIN = (
    "--train.examples-per-step 4 --train.learning-rate 1e-2 --train.precision fp32 --train.logging-steps 1 "
    "--train.save-steps 2 --train.max-steps 4"
)
PAIRS = [{"prompt": f"q{i}", "chosen": " yes" * (1 + i % 2), "rejected": " no" * (1 + i % 3)} for i in range(12)]
ANSWERS = [{"prompt": f"q{i}", "completion": " yes" if i % 2 else " no", "label": bool(i % 2)} for i in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(lm_of("llama"), folder / "base")
    save(lm_of("llama", seed=1), folder / "other")
    lm = new_adapter(load(folder / "base"), PeftOptions(r=2, options={"init_lora_weights": False}), seed=0)
    save(lm, folder / "tuned")
    return folder


@pytest.fixture(autouse=True)
def _here(place, models):
    for name in ("base", "other", "tuned"):
        Path(name).symlink_to(models / name)
    _rows("pairs.jsonl", PAIRS)
    _rows("answers.jsonl", ANSWERS)


def _rows(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def of(path: str) -> torch.Tensor:
    lm = load(path, dtype="float32")
    return logits(lm.model, lm.tokenizer)


def test_every_way_to_be_held_to_the_start_begins_without_a_margin_and_learns_one(maypole):
    for out, given in {
        "all": "--model base",
        "all-live": "--model base --train.reference-logps live",
        "lora": "--model base --train.peft.type lora --train.peft.r 4",
        "lora-live": "--model base --train.peft.type lora --train.peft.r 4 --train.reference-logps live",
        "further": "--model tuned",
        "further-live": "--model base --adapter tuned --train.reference-logps live",
    }.items():
        code, _, err = maypole(f"{given} --data pairs.jsonl --out {out} {TRAIN}")
        assert code == 0, err
        first, *_, last = lines(out)
        assert first["loss"] == pytest.approx(np.log(2), rel=1e-5), out
        assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5), out
        assert last["rewards/margins"] > 0, out
        weights = "model" if out.startswith("all") else "adapter_model"
        assert Path(out, f"{weights}.safetensors").is_file()
        assert not torch.equal(of(out), of("tuned" if "further" in out else "base"))
    for how in ("all", "lora", "further"):
        assert torch.allclose(of(how), of(f"{how}-live"), atol=1e-5), how


def test_another_reference_is_a_model_or_the_base_of_an_adapter_that_goes_on(maypole):
    for out, given in {
        "apart": "--model base --reference other",
        "lora-apart": "--model base --train.peft.type lora --reference other",
        "off": "--model tuned --reference base",
    }.items():
        code, _, err = maypole(f"{given} --data pairs.jsonl --out {out} {TRAIN}")
        assert code == 0, err
        assert lines(out)[0]["loss"] != pytest.approx(np.log(2), rel=1e-5)
    assert lines("apart")[0]["loss"] == pytest.approx(lines("lora-apart")[0]["loss"], rel=1e-6)
    code, _, err = maypole(f"--model base --reference base --data pairs.jsonl --out same {TRAIN}")
    assert code == 0, err
    assert lines("same")[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("loss", ["cdpo", "robust", "rpo", "ipo", "hinge", "simpo", "orpo", "kto"])
def test_every_loss_trains_and_is_measured_on_rows_it_has_not_seen(maypole, loss: str):
    data = "answers.jsonl" if loss == "kto" else "pairs.jsonl"
    code, _, err = maypole(f"--loss {loss} --model base --data {data} --eval-data {data} --out o {TRAIN}")
    assert code == 0, err
    metrics = Artifact.load("o").manifest["metrics"]
    assert np.isfinite(metrics["eval_loss"])
    assert metrics["eval_rewards/chosen"] > metrics["eval_rewards/rejected"]


def test_an_interrupted_run_goes_on_by_the_same_command_and_ends_the_same(maypole, monkeypatch):
    assert maypole(f"--model base --data pairs.jsonl --out whole {TRAIN}")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr("maypole.train.trainer.PackedTrainer.training_step", _stopped_at(3))
        assert maypole(f"--model base --data pairs.jsonl --out part {TRAIN}")[0] == 130
    assert maypole(f"--model base --data pairs.jsonl --out part {TRAIN}")[0] == 0
    assert torch.equal(of("whole"), of("part"))


def _stopped_at(step: int):
    from maypole.train.trainer import PackedTrainer

    real = PackedTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        if int(inputs["step"]) == step:
            raise KeyboardInterrupt
        return real(self, model, inputs, num_items_in_batch)

    return training_step


def bytes_of_tensors() -> int:
    gc.collect()
    storages = [t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def test_a_dry_run_counts_the_memory_of_a_reference_that_is_another_model(maypole, monkeypatch):
    """Its weights lie in memory beside the model's; the model itself as it was takes none."""
    monkeypatch.setattr(estimate, "_resident", bytes_of_tensors)  # what else the process holds comes and goes
    lm = lm_of("llama")
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = type(lm.model.config)(**{**lm.model.config.to_dict(), **wide, "num_key_value_heads": 4, "head_dim": 128})
    save(create(config, lm.tokenizer, seed=0), Path("large"))
    size = Path("large", "model.safetensors").stat().st_size
    assert size > 60e6
    line = f"--model base --data pairs.jsonl --out o --dry-run --json {TRAIN}"
    alone, base, large = (
        json.loads(maypole(f"{line} {more}")[1])["peak_memory_bytes"]
        for more in ("", "--reference base", "--reference large")
    )
    assert large - max(alone, base) > 0.7 * size
    assert abs(base - alone) < 0.3 * size
    code, _, err = maypole(f"{line} --reference nowhere")
    assert (code, "nowhere" in err) == (2, True)


def test_a_dry_run_counts_what_it_would_drop_by_reason(capsys):
    _rows("pairs.jsonl", [*PAIRS, {"prompt": "q", "chosen": "a", "rejected": "a"}])
    code = run(["align", "dpo", "--json", *shlex.split(f"--model base --data pairs.jsonl --out o --dry-run {TRAIN}")])
    assert code == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows_kept"], plan["rows_dropped"]) == (12, {"chosen and rejected are alike": 1})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--loss dppo", "--loss"),
        ("--loss simpo --reference other", "nothing with --loss simpo"),
        ("--gamma 1", "it belongs to simpo"),
        ("--train.eval-steps 5", "0 without --eval-data"),
        ("--columns prompt", "NAME=COLUMN"),
        ("--loss kto", "label"),
    ],
)
def test_settings_that_cannot_work_are_named(maypole, line: str, message: str):
    code, _, err = maypole(f"--model base --data pairs.jsonl --out o {line}")
    assert code == 2
    assert message in err
