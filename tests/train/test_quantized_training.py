"""QLoRA: an adapter learns on a base in 8 or 4 bits, which stays as it is; the base itself cannot learn."""

import importlib.util
from pathlib import Path

import pytest
import torch

from maypole.core.errors import UserError
from maypole.models import PeftOptions, load, save
from maypole.train import fit
from tests.tiny_models import model_of
from tests.train.train_fixtures import Trees, config, ids_of, leaf, lines_of, lm_with, tree_rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here: pip install 'maypole[quant]'"
)
ROWS = tree_rows([leaf(ids_of(5 + i % 9, i)) for i in range(20)])
LORA = PeftOptions(r=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    save(lm_with(model_of("llama", vocab_size=260, hidden_size=64, intermediate_size=128)), path)
    return path


def settings(**changes):
    return config(**{"learning_rate": 3e-3, "examples_per_step": 20, "max_steps": 10, "logging_steps": 1, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_ten_steps_of_lora_lower_the_loss_and_leave_the_base_as_it_was(base, tmp_path, kind, checkpointing):
    lm = load(base, quantization=kind)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    artifact = fit(lm, ROWS, Trees(), settings(peft=LORA, gradient_checkpointing=checkpointing), out=tmp_path / "out")
    losses = [line["loss"] for line in lines_of(artifact.path) if "loss" in line]
    assert losses[-1] < losses[0] - 0.05
    after = lm.transformer.state_dict()
    kept = {name: after.get(name, after.get(name.replace("_proj.", "_proj.base_layer."))) for name in before}
    assert all(torch.equal(before[name], kept[name]) for name in before)
    moved = [p for name, p in lm.model.named_parameters() if "lora_B" in name]
    assert all(p.dtype == torch.float32 and float(p.detach().abs().max()) > 0 for p in moved)


def test_the_result_names_its_base_and_goes_on_and_is_loaded_when_finished(base, tmp_path):
    first = fit(load(base, quantization="nf4"), ROWS, Trees(), settings(peft=LORA), out=tmp_path / "one")
    lm = load(first.path, quantization="nf4")
    assert lm.name == str(base)
    second = fit(lm, ROWS, Trees(), settings(), out=tmp_path / "two")
    losses = [[line["loss"] for line in lines_of(a.path) if "loss" in line] for a in (first, second)]
    assert losses[1][-1] < losses[0][-1]
    again = load(first.path, quantization="nf4")
    fit(again, ROWS, Trees(), settings(), out=tmp_path / "two")
    want = {n: p for n, p in lm.model.named_parameters() if "lora" in n}
    assert all(torch.equal(p, want[n]) for n, p in again.model.named_parameters() if "lora" in n)


def test_a_quantized_base_alone_cannot_learn_and_nothing_can_be_merged_into_it(base, tmp_path):
    lm = load(base, quantization="nf4")
    with pytest.raises(UserError, match=r"weights held as nf4 cannot learn.*\n  hint: --peft.type lora"):
        fit(lm, ROWS, Trees(), settings(), out=tmp_path / "out")
    assert not any(p.requires_grad for name, p in lm.model.named_parameters() if "proj" in name)
    fit(lm, ROWS, Trees(), settings(peft=LORA, max_steps=1), out=tmp_path / "one")
    with pytest.raises(UserError, match="cannot be merged into weights held as nf4"):
        fit(lm, ROWS, Trees(), settings(peft=LORA), out=tmp_path / "two")
    assert lm.adapters == ("default",)
