"""Fresh weights at the scales that learn, for any family with a view of its blocks. Knows nothing about rows.

transformers draws every matrix with a standard deviation of .02, at which a small decoder does not learn to copy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from maypole.core.seeds import derive
from maypole.models.block_views import Projection, blocks
from maypole.models.language_model import LanguageModel
from maypole.models.loading import create
from maypole.village.tokenizer import END


@dataclass(frozen=True, kw_only=True)
class Init:
    """Standard deviations: `embeddings` in units of hidden_size^-1/2, `matrices` in units of fan_in^-1/2 (projections
    back into the residual stream are divided by sqrt(2 layers)), `qk_biases` as it is."""

    embeddings: float = 1.0
    matrices: float = 0.6
    qk_biases: float = 0.0


def blank(
    model: Mapping[str, Any], init: Init, tokenizer: PreTrainedTokenizerBase, seed: int, name: str
) -> LanguageModel:
    """A model from nothing that will be saved in bf16; `model` holds model_type and the fields of its config."""
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    fields: dict[str, Any] = {"vocab_size": len(tokenizer), **model}
    lm = create(AutoConfig.for_model(**fields, **ids), tokenizer, seed)
    lm.name, lm.dtype = name, torch.bfloat16
    ends: Any = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)]  # of a text, of an assistant's turn
    lm.model.generation_config = GenerationConfig(**ids | {"eos_token_id": ends})
    draw(lm, init, torch.Generator().manual_seed(derive(seed, "village init")))
    return lm


@torch.no_grad()
def draw(lm: LanguageModel, init: Init, generator: torch.Generator) -> None:
    """All embeddings, matrices and, where asked, q and k biases anew; the rest stays as the family starts it."""
    view = blocks(lm.model)
    embeddings: Any = view.embeddings
    head: Any = view.head
    positions: Any = getattr(view.base, "wpe", None)  # learned ones, of GPT-2
    std = init.embeddings * embeddings.weight.shape[1] ** -0.5
    depth = math.sqrt(2 * len(view))
    embeddings.weight.normal_(0.0, std, generator=generator)
    for block in view:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            projection: Projection | None = getattr(block, name)
            if projection is not None:
                fan_in = projection.weight.shape[1]
                scale = init.matrices * fan_in**-0.5 / (depth if name in ("o", "down") else 1.0)
                shape = projection.weight.shape
                projection.write(torch.empty(shape).normal_(0.0, scale, generator=generator))
    if positions is not None:
        positions.weight.normal_(0.0, std, generator=generator)
    if not view.tied:
        head.weight.normal_(0.0, init.matrices * head.weight.shape[1] ** -0.5, generator=generator)
    if init.qk_biases:
        for block in view:
            for projection in (block.q, block.k):
                bias: Any = projection.module.bias
                bias.normal_(0.0, init.qk_biases, generator=generator)
