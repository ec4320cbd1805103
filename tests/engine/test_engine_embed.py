import numpy as np
import peft
import pytest
import torch
import transformers as hf

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.engine import Engine, EngineConfig, Request
from maypole.engine.embedding import Pooling
from maypole.models.language_model import LanguageModel
from tests.engine.engine_fixtures import VOCABULARY, byte_tokenizer, lm_of, random_ids
from tests.tiny_models import config_of

TEXTS = random_ids([3, 17, 8, 8, 40])


def _encoder(**changes) -> LanguageModel:
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=64, **changes,
    )  # fmt: skip
    return LanguageModel(hf.BertModel(config).eval(), byte_tokenizer(), "tiny bert", None)


@torch.no_grad()
def _states(model, ids: list[int], layer: int) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("make", [lambda: lm_of("llama"), lambda: lm_of("gpt2"), _encoder])
@pytest.mark.parametrize("layer", [-1, 1])
def test_pooled_states_equal_transformers_one_by_one(make, layer: int):
    lm = make()
    states = [_states(lm.model, ids, layer) for ids in TEXTS]
    for engine in (Engine(lm), Engine(lm, EngineConfig(max_batch_tokens=20))):
        wanted: dict[Pooling, list[torch.Tensor]] = {
            "last": [s[-1] for s in states],
            "mean": [s.mean(0) for s in states],
            "cls": [s[0] for s in states],
        }
        for pooling, want in wanted.items():
            got = engine.embed(TEXTS, pooling=pooling, layer=layer, normalize=False)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, torch.stack(want).numpy(), atol=1e-5)
        unit = engine.embed(TEXTS, pooling="mean", layer=layer)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-6)


def test_an_encoder_reads_text_with_its_special_tokens_and_says_what_it_cannot():
    lm = _encoder()
    engine = Engine(lm)
    ids = lm.tokenizer("some text")["input_ids"]
    np.testing.assert_allclose(engine.embed(["some text"]), engine.embed([ids]), atol=1e-6)
    assert engine.capabilities == {"embed"}
    with pytest.raises(UnsupportedCapability, match="cannot generate"):
        engine.generate([Request("a")])
    with pytest.raises(UserError, match="do not fit"):
        engine.embed(["x" * 100])
    assert engine.embed(["x" * 100], truncate=True).shape == (1, 32)


def test_classifiers_equal_transformers_with_and_without_an_adapter():
    torch.manual_seed(0)
    config = config_of("llama", vocab_size=VOCABULARY, num_labels=3, pad_token_id=0)
    model = hf.LlamaForSequenceClassification(config).eval()
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(model, lora, adapter_name="a").eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(0.0, 0.2)
    lm = LanguageModel(wrapped, byte_tokenizer(), "tiny classifier", None)
    engine = Engine(lm)
    for name in ("a", None):
        got = engine.classify([Request(t, adapter=name or "") for t in TEXTS])
        with lm.with_adapter(name).active() as view, torch.no_grad():
            want = np.concatenate([view(input_ids=torch.tensor([t])).logits.numpy() for t in TEXTS])
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert "generate" not in engine.capabilities
