"""fp32 masters under bf16 arithmetic, and a result in the dtype that was loaded, which a stranger reads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maypole.core.errors import ConfigError
from maypole.models import load, save
from maypole.models.loading import cpu_has_bf16
from maypole.models.peft_options import PeftOptions
from maypole.train import fit
from maypole.train.precision import decide, masters
from tests.engine.engine_fixtures import lm_of
from tests.models.conftest import as_a_stranger_reads, logits
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, farthest, ids_of, leaf, lines_of, lm_with, tree_rows, weights_of

ROWS = [leaf(ids_of(5 + i % 9, i)) for i in range(20)]
bf16_only = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bf16 instructions")


def base_of(path: Path, dtype: torch.dtype) -> Path:
    lm = lm_of("llama")
    lm.dtype = dtype
    save(lm, path)
    return path


@bf16_only
def test_bf16_arithmetic_stays_close_to_fp32(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        lm = lm_with(model_of("llama"))
        wanted = config(precision=precision, examples_per_step=20, learning_rate=1e-3, max_steps=6)
        fit(lm, tree_rows(ROWS), Trees(), wanted, out=tmp_path / precision)
        assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
        losses[precision] = [line["loss"] for line in lines_of(tmp_path / precision)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["bf16"] != losses["fp32"]
    assert losses["fp32"][-1] < losses["fp32"][0]


def test_weights_are_fp32_in_training_and_as_they_were_loaded_afterwards(tmp_path):
    seen: set[torch.dtype] = set()
    lm = load(base_of(tmp_path / "base", torch.bfloat16), dtype="bfloat16")
    hook = lm.transformer.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(p.dtype for p in module.parameters()) if module.training else None,
        with_kwargs=True,
    )
    artifact = fit(lm, tree_rows(ROWS), Trees(), config(), out=tmp_path / "out")
    hook.remove()
    assert seen == {torch.float32}
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(artifact.path / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("run_in", ["bfloat16", "float32"])
def test_what_is_in_memory_after_training_is_what_the_result_holds(tmp_path, run_in: str):
    base = base_of(tmp_path / "base", torch.bfloat16)
    lm = load(base, dtype=run_in)
    fit(lm, tree_rows(ROWS), Trees(), config(), out=tmp_path / "out")
    again = load(base, dtype=run_in)
    fit(again, tree_rows(ROWS), Trees(), config(), out=tmp_path / "out")
    assert farthest(weights_of(lm), weights_of(again)) == 0.0
    assert farthest(weights_of(lm), weights_of(load(tmp_path / "out", dtype=run_in))) == 0.0


def test_small_steps_are_not_lost_to_bf16_weights(tmp_path):
    """A learning rate far below bf16's resolution still moves the weights, for the steps add up in fp32."""
    lm = load(base_of(tmp_path / "base", torch.bfloat16), dtype="bfloat16")
    before = weights_of(lm)
    fit(lm, tree_rows(ROWS), Trees(), config(max_steps=40, learning_rate=2e-5, save_steps=100), out=tmp_path / "out")
    moved = [not torch.equal(before[n], p) for n, p in weights_of(lm).items() if p.ndim > 1]
    assert all(moved)


def test_a_wish_that_the_hardware_cannot_meet_is_an_error(monkeypatch):
    from maypole.train import precision

    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert decide("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ConfigError, match="no bf16 instructions"):
        decide("bf16", torch.device("cpu"))


def test_masters_are_taken_back_on_errors():
    model = model_of("llama").to(torch.bfloat16)

    def breaks() -> None:
        with masters(model, "fp32", torch.bfloat16):
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        breaks()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_stranger_reads_the_results_with_equal_logits(tmp_path):
    """A checkpoint and an adapter, by transformers and peft in a process that cannot import maypole."""
    base = base_of(tmp_path / "base", torch.float32)
    expected = {}
    for name, peft in (("whole", None), ("adapter", PeftOptions(r=4))):
        lm = load(base)
        fit(lm, tree_rows(ROWS), Trees(), config(peft=peft), out=tmp_path / name)
        expected[name] = logits(lm.model, lm.tokenizer)
    found = as_a_stranger_reads([tmp_path / name for name in expected], tmp_path)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=0)
    assert not torch.allclose(expected["whole"], expected["adapter"])
