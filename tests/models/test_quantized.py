import importlib.util
from pathlib import Path

import peft
import pytest
import torch
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from maypole.core.errors import ConfigError, MissingExtra, UnsupportedCapability, UserError
from maypole.models import PeftOptions, blocks, export_gguf, load, merged, new_adapter, quantized, save
from tests.models.conftest import logits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here: pip install 'maypole[quant]'"
)
WIDE = {"hidden_size": 64, "intermediate_size": 128}
THEIRS = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
}  # fmt: skip
KINDS = tuple(THEIRS)


@pytest.fixture
def base(make) -> Path:
    return make("llama", name="base", **WIDE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_base_is_held_as_transformers_holds_it(make, kind, family):
    path = make(family, **({"n_embd": 64} if family == "gpt2" else WIDE))
    lm = load(path, quantization=kind)
    theirs = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=THEIRS[kind], device_map={"": "cpu"}, dtype=torch.float32
    )
    assert lm.quantization == kind
    own, wanted = lm.model.state_dict(), theirs.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in own)
    quantized.multiply_exactly(theirs)
    torch.testing.assert_close(logits(lm.model, lm.tokenizer), logits(theirs, lm.tokenizer), atol=0, rtol=0)


def test_eight_bits_take_a_quarter_of_the_memory_and_four_an_eighth_of_what_is_held_so(base):
    def held(**options: str) -> int:
        layers = load(base, **options).model.model.layers
        return sum(p.nbytes for name, p in layers.named_parameters() if "norm" not in name)

    whole = held()
    assert held(quantization="int8") * 4 == whole
    assert held(quantization="nf4") * 8 == whole


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_as_the_numbers_that_they_stand_for(base, kind):
    assert quantized.count(load(base, quantization=kind).model) == load(base).model.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_products_are_those_of_the_numbers_that_the_weights_stand_for(make, kind, family):
    path = make(family, **({"n_embd": 64} if family == "gpt2" else WIDE))
    held, plain = load(path, quantization=kind), load(path)
    before = {name: tensor.clone() for name, tensor in held.model.state_dict().items()}
    for layer, own in zip(held.model.modules(), plain.model.modules(), strict=True):
        if quantized.quantization_of(layer, recurse=False):
            weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
            own.weight.data = weight.t() if family == "gpt2" else weight
    wanted = logits(plain.model, plain.tokenizer)
    torch.testing.assert_close(logits(held.model, held.tokenizer), wanted, atol=1e-5, rtol=1e-5)
    after = held.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_close_to_what_they_were_and_known_apart(base, kind):
    plain, held = load(base), load(base, quantization=kind)
    before, after = logits(plain.model, plain.tokenizer), logits(held.model, held.tokenizer)
    error = float((after - before).norm() / before.norm())
    assert 1e-4 < error < {"int8": 0.1, "nf4": 0.5}[kind]
    assert plain.fingerprint != held.fingerprint is not None
    assert held.fingerprint == load(base, quantization=kind).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_quantized_base_is_saved_and_read_as_peft_reads_it(base, tmp_path, kind):
    lm = new_adapter(load(base, quantization=kind), PeftOptions(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.03)
    save(lm, tmp_path / "adapter")
    again = load(tmp_path / "adapter", quantization=kind)
    assert again.quantization == kind
    assert again.fingerprint != load(tmp_path / "adapter").fingerprint
    theirs = AutoModelForCausalLM.from_pretrained(base, quantization_config=THEIRS[kind], device_map={"": "cpu"})
    quantized.multiply_exactly(theirs)
    read = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    wanted = logits(read, lm.tokenizer)
    assert not torch.allclose(wanted, logits(load(base, quantization=kind).model, lm.tokenizer), atol=1e-2)
    torch.testing.assert_close(logits(lm.model, lm.tokenizer), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(again.model, lm.tokenizer), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_the_weights_as_they_were_says_so(base, tmp_path, kind):
    lm = load(base, quantization=kind)
    with pytest.raises(UserError, match=f"its weights are held as {kind}"):
        save(lm, tmp_path / "out")
    with pytest.raises(UserError, match=f"its weights are held as {kind} already"):
        export_gguf(lm, tmp_path / "m.gguf")
    with pytest.raises(UserError, match="its weights are quantized and cannot be read or changed"):
        _ = blocks(lm.model)[0].q.weight
    with pytest.raises(UserError, match="its weights are quantized and cannot be read or changed"):
        blocks(lm.model)[0].down.write(torch.zeros(64, 128))
    adapted = new_adapter(lm, PeftOptions(r=4), seed=0)
    with pytest.raises(UserError, match=f"cannot be merged into weights held as {kind}"):
        merged(adapted)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_a_device_that_cannot_is_an_error_with_the_reason(base, monkeypatch):
    def fails(self: object, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image\nmore of it")

    quantized._fault.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr("bitsandbytes.nn.Linear4bit.forward", fails)
        with pytest.raises(UnsupportedCapability, match=r"nf4 on cpu here: no kernel image\n  hint: another"):
            load(base, quantization="nf4")
    quantized._fault.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr("bitsandbytes.nn.Linear4bit.forward", lambda self, x: x * 2)
        with pytest.raises(UnsupportedCapability, match="its product is wrong"):
            load(base, quantization="nf4")
    quantized._fault.cache_clear()


def test_a_wish_that_cannot_be_met_is_an_error_before_anything_is_read(monkeypatch):
    with pytest.raises(ConfigError, match="accepted: int8, nf4"):
        load("/nowhere", quantization="int4")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"--quantization nf4 needs .*\n  hint: pip install 'maypole\[quant\]'"):
        load("/nowhere", quantization="nf4")
