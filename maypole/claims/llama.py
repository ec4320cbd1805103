"""Small Llamas with fresh weights, as claims begin with. Knows nothing about any experiment."""

from transformers import AutoConfig, PreTrainedTokenizerBase

from maypole.models.language_model import LanguageModel
from maypole.models.loading import create


def llama(
    tokenizer: PreTrainedTokenizerBase, size: tuple[int, int], seed: int, *, widening: int = 4
) -> LanguageModel:
    """Fresh weights as transformers draws them: `size` is layers and width, `widening` how much wider an MLP is."""
    layers, width = size
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=width, intermediate_size=widening * width,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, **ids,
    )  # fmt: skip
    return create(config, tokenizer, seed)
