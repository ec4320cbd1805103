"""Tiny random models of every family that maypole has a block view for; seconds to build, exact enough to compare."""

from typing import Any

import torch
import transformers as hf

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 6}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
}
FAMILIES = tuple(_OPTIONS)
_MIXTURE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
MIXTURES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, **_MIXTURE}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, **_MIXTURE}),
}
"""Mixtures of experts: no view of their blocks, but packed attention as it stands."""


def config_of(family: str, **changes: Any) -> Any:
    """The transformers config of a tiny model."""
    name, options = (_OPTIONS | MIXTURES)[family]
    sizes = dict(_SIZES)
    if family == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 512}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt_neox":
        del sizes["num_key_value_heads"]
    if family in ("gemma2", "gemma3_text"):
        options = {**options, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return getattr(hf, name)(**{**sizes, **options, **changes})


def model_of(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny causal LM in eval mode, fp32, with weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config_of(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
    return model.eval()
