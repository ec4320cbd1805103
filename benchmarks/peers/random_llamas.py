"""Llamas of three sizes with random weights, and a tokenizer that both maypole and llama.cpp can use."""

import itertools
import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maypole.models import LanguageModel

SIZES: dict[str, dict[str, int]] = {
    "S": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5,
          "num_key_value_heads": 5, "vocab_size": 4096},
    "L": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 12, "vocab_size": 32000},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32000},
}  # fmt: skip
END = "<|end|>"
NEVER_SAID = 257
"""The end and the single bytes come first in the vocabulary; the head never prefers them."""


def random_llama(size: str, dtype: str = "float32") -> LlamaForCausalLM:
    """The same weights every time; it goes on for as long as it is asked to, in letters."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=2048, bos_token_id=None, eos_token_id=None)  # type: ignore[arg-type]
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # large enough that two tokens are never nearly as likely
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
        model.lm_head.weight[:NEVER_SAID] = 0.0
    return model.to(getattr(torch, dtype))


def language_model(model: LlamaForCausalLM) -> LanguageModel:
    """`model` with a byte-level BPE of its size whose tokens are two and three letters."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(model.config.vocab_size), eos_token=END)
    return LanguageModel(model, tokenizer, "random", None, model.dtype)


def _tokenizer(size: int) -> Tokenizer:
    single = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = itertools.product(string.ascii_letters, repeat=2)
    triples = ((a + b, c) for a, b, c in itertools.product(string.ascii_letters, repeat=3))
    merges: Any = list(itertools.islice(itertools.chain(pairs, triples), size - len(single)))
    vocabulary = {token: i for i, token in enumerate([*single, *("".join(pair) for pair in merges)])}
    tokenizer: Any = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
