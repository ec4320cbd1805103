"""Training on a GPU: fp32 gives the CPU's losses and weights, bf16 stays within its noise."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from maypole.models import load, save
from maypole.models.peft_options import PeftOptions
from maypole.train import fit
from maypole.train.verbs import SftOptions, sft
from tests.engine.engine_fixtures import lm_of
from tests.train.train_fixtures import Trees, config, ids_of, leaf, lines_of, tree_rows, weights_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

ROWS = [leaf(ids_of(5 + i % 9, i)) for i in range(20)]


def losses(out) -> list[float]:
    return [line["loss"] for line in lines_of(out)]


@pytest.mark.parametrize("peft", [None, PeftOptions(type="lora", r=4)], ids=["all weights", "an adapter"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fp32_on_a_gpu_learns_what_it_learns_on_a_cpu(tmp_path, peft, checkpointing: bool):
    here = lm_of("llama")
    there = replace(here, model=copy.deepcopy(here.model).cuda(), fingerprint="there")
    wanted = config(examples_per_step=20, learning_rate=1e-3, max_steps=4, peft=peft, save_steps=2)
    before = weights_of(here)
    for lm, name in ((here, "cpu"), (there, "cuda")):
        asked = replace(wanted, gradient_checkpointing=checkpointing and name == "cuda")
        fit(lm, tree_rows(ROWS), Trees(), asked, out=tmp_path / name)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    ours, theirs = weights_of(there), weights_of(here)
    kept = [name for name in theirs if name in before]
    moved = sum(float((theirs[name] - before[name]).norm()) for name in kept)
    apart = sum(float((theirs[name] - ours[name].cpu()).norm()) for name in theirs)
    assert apart <= 1e-2 * moved if peft is None else apart <= 1e-4


def test_the_command_trains_in_bf16_on_a_gpu_and_its_result_loads(tmp_path):
    save(lm_of("llama"), tmp_path / "base")
    rows = [{"prompt": f"{i} and {i} make", "completion": f" {2 * i}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def trained(device: str, precision: str) -> list[float]:
        out = tmp_path / f"{device}-{precision}"
        sft(
            SftOptions(
                model=str(tmp_path / "base"), data=(str(tmp_path / "rows.jsonl"),), out=out, device=device,
                precision=precision, learning_rate=1e-3, max_steps=5, examples_per_step=12, logging_steps=1,
            )
        )  # fmt: skip
        assert load(out, device=device).device.type == device
        return losses(out)

    wanted = trained("cpu", "fp32")
    assert trained("cuda", "bf16") == pytest.approx(wanted, rel=2e-2)
    assert trained("cuda", "fp32") == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] < wanted[0]
