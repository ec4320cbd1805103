"""One number per text: a language model whose head reads the last token, in transformers' own layout.

Knows nothing about what the number means.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from maypole.core.errors import UnsupportedModel, UserError
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.models.adapters import own_randomness
from maypole.models.attention import causal_lm
from maypole.models.head import effective_weight
from maypole.models.language_model import LanguageModel


def has_score_head(model: nn.Module) -> bool:
    """Whether the head of a transformers model, PEFT included, scores texts instead of predicting tokens."""
    lm: Any = causal_lm(model)
    return lm.get_output_embeddings() is None and isinstance(getattr(lm, "score", None), nn.Module)


def score_states(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """The scores (n, num_labels) of final hidden states (n, d_model), in fp32 or better whatever the arithmetic.

    Two answers of about one score would tie in bf16.
    """
    layer: Any = getattr(causal_lm(model), "score")  # noqa: B009
    wide = torch.promote_types(states.dtype, torch.float32)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states.to(wide), effective_weight(layer).to(wide))


def with_score_head(lm: LanguageModel, *, seed: int) -> LanguageModel:
    """A causal LM's body under a fresh head of one score, drawn from `seed`; the body's Parameters are shared.

    It is what ``AutoModelForSequenceClassification(num_labels=1)`` loads. transformers finds the last token of a padded
    text by its pad token, so config and tokenizer get one that never ends a text, where there is one.
    """
    if lm.adapters:
        raise UserError("an adapter of a language model has no place under a score head", lm.name, "merge it first")
    body: Any = getattr(lm.transformer, lm.transformer.base_model_prefix)
    config: Any = copy.deepcopy(lm.transformer.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UnsupportedModel(config.model_type, "a score head in transformers") from error
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        raise UnsupportedModel(config.model_type, "a score head that reads the last token")
    with own_randomness(derive(seed, "init")):
        head = nn.Linear(model.score.in_features, 1, bias=False)
        nn.init.normal_(head.weight, std=float(getattr(config.get_text_config(), "initializer_range", 0.02)))
    setattr(model, model.base_model_prefix, body)
    model.score = head.to(device=lm.device, dtype=lm.transformer.dtype)
    _choose_pad_token(lm, model.config)
    made = digest("score head", lm.fingerprint, str(seed)) if lm.fingerprint else None
    return replace(lm, model=model.eval(), fingerprint=made)


def _choose_pad_token(lm: LanguageModel, config: Any) -> None:
    tokenizer = lm.tokenizer
    ends = [*lm.end_tokens, tokenizer.eos_token_id]
    names = ("pad_token", "unk_token", "bos_token")
    chosen = next((n for n in names if getattr(tokenizer, n) and getattr(tokenizer, f"{n}_id") not in ends), None)
    config.get_text_config().pad_token_id = None if chosen is None else getattr(tokenizer, f"{chosen}_id")
    if chosen is not None:
        tokenizer.pad_token = getattr(tokenizer, chosen)
