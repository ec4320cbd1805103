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
from maypole.village.induction import induce
from maypole.village.tokenizer import END


@dataclass(frozen=True, kw_only=True)
class Init:
    """Standard deviations: `embeddings` in units of hidden_size^-1/2, `matrices` in units of fan_in^-1/2, where
    projections back into the residual stream are divided by sqrt(2 layers). With `induction` the first two layers start
    as a circuit that looks things up (`maypole.village.induction`)."""

    embeddings: float = 1.0
    matrices: float = 0.6
    induction: bool = False


def blank(
    model: Mapping[str, Any], init: Init, tokenizer: PreTrainedTokenizerBase, seed: int, name: str
) -> LanguageModel:
    """A model from nothing that will be saved in bf16; `model` holds model_type and the fields of its config."""
    ids: dict[str, Any] = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields: dict[str, Any] = {"vocab_size": len(tokenizer), **model}
    lm = create(AutoConfig.for_model(**fields, **ids), tokenizer, seed)
    lm.name, lm.dtype = name, torch.bfloat16
    words = tokenizer.get_vocab()
    ends = [tokenizer.eos_token_id, *([words[END]] if END in words else [])]  # of a text, of an assistant's turn
    lm.model.generation_config = GenerationConfig(**ids | {"eos_token_id": ends})
    draw(lm, init, torch.Generator().manual_seed(derive(seed, "village init")))
    return lm


@torch.no_grad()
def draw(lm: LanguageModel, init: Init, generator: torch.Generator) -> None:
    """All embeddings and matrices anew; norms and biases stay as the family starts them, but for a circuit's."""
    view = blocks(lm.model)
    embeddings: Any = view.embeddings
    head: Any = view.head
    positions: Any = getattr(view.base, "wpe", None)  # learned ones, of GPT-2
    width = embeddings.weight.shape[1]
    depth = math.sqrt(2 * len(view))
    embeddings.weight.normal_(0.0, init.embeddings * width**-0.5, generator=generator)
    for block in view:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            projection: Projection | None = getattr(block, name)
            if projection is not None:
                shape = projection.weight.shape
                scale = init.matrices * shape[1] ** -0.5 / (depth if name in ("o", "down") else 1.0)
                projection.write(torch.empty(shape).normal_(0.0, scale, generator=generator))
    if positions is not None:
        positions.weight.normal_(0.0, init.embeddings * width**-0.5, generator=generator)
    if not view.tied:
        head.weight.normal_(0.0, init.matrices * width**-0.5, generator=generator)
    if init.induction:
        induce(lm, view, generator)
