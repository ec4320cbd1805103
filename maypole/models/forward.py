"""One packed forward pass: token ids and a plan in, hidden states out. Knows nothing about what they are scored on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from maypole.core.errors import UnsupportedModel, UserError
from maypole.models.attention import causal_lm, packed_execution
from maypole.models.block_views import base_model
from maypole.models.head import head_of
from maypole.models.last_layer import PROVEN
from maypole.models.packing import PackedPlan, documents, pack_rows
from maypole.models.plan import attention_plan

_TESTED = "_maypole_packed_ok"


def packed_hidden(model: nn.Module, input_ids: torch.Tensor, plan: PackedPlan) -> torch.Tensor:
    """Final hidden states of packed tokens; call it inside `packed_execution(model)`.

    input_ids: (tokens,) -> (tokens, d_model). Each row of the plan is computed as if it stood alone. Where the plan
    says what is read, the other states may be zeros.
    """
    with attention_plan(plan):
        out = base_model(model)(
            input_ids=input_ids.unsqueeze(0), position_ids=plan.positions.unsqueeze(0), use_cache=False
        )
    return out.last_hidden_state[0]


@torch.no_grad()
def self_test(model: nn.Module) -> None:
    """Raise UnsupportedModel unless packed logits equal the plain ones on three random sequences; tested once, as is
    whether the last layer can be computed in part.

    Alone the attention flag of a class is not enough: position biases inside the model would be silently wrong.
    Where no head predicts tokens it is the hidden states that are compared.
    """
    lm = causal_lm(model)
    if getattr(lm, _TESTED, False):
        return
    embeddings: Any = lm.get_input_embeddings()
    vocabulary = int(embeddings.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 11, 8]
    texts = [torch.randint(vocabulary, (n,), generator=generator).to(lm.device) for n in lengths]
    training = model.training
    model.eval()
    try:
        headless = lm.get_output_embeddings() is None
        whole: Any = base_model(model) if headless else lm
        outputs = [whole(input_ids=t[None], use_cache=False) for t in texts]
        plain = torch.cat([(out.last_hidden_state if headless else out.logits)[0] for out in outputs]).float()
        with packed_execution(model):
            hidden = packed_hidden(model, torch.cat(texts), documents(lengths).to(lm.device))
            packed = hidden.float() if headless else head_of(model).logits(hidden)
        in_part = _reads_in_part(model, torch.cat(texts), lengths, hidden)
    finally:
        model.train(training)
    if plain.isnan().any():
        what = f"this {lm.config.model_type} model answers with logits that are not numbers"
        raise UserError(what, str(lm.config.name_or_path), "weights that did not diverge when they were trained")
    wide = next(lm.parameters()).dtype in (torch.float32, torch.float64)
    error = float((packed - plain).abs().max() / plain.abs().max().clamp_min(1e-6))
    if not error <= (1e-4 if wide else 5e-2):
        raise UnsupportedModel(lm.config.model_type, f"exact packed execution (its logits differ by {error:.1e})")
    setattr(lm, _TESTED, True)
    if in_part:
        setattr(lm, PROVEN, True)


def _reads_in_part(model: nn.Module, ids: torch.Tensor, lengths: Sequence[int], states: torch.Tensor) -> bool:
    """Whether the last layer gives the same `states` where only the two last ones of each document are read."""
    lm = causal_lm(model)
    ends = np.cumsum(lengths)
    read = np.sort(np.concatenate([ends - 2, ends - 1]))
    spans = [np.arange(end - n, end) for n, end in zip(lengths, ends)]
    setattr(lm, PROVEN, True)
    try:
        with packed_execution(model):
            found = packed_hidden(model, ids, pack_rows(spans, len(ids), whole=False, read=read).to(ids.device))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False
    finally:
        delattr(lm, PROVEN)
    some = torch.from_numpy(read).to(ids.device)
    wanted, ours = states[some].float(), found[some].float()
    wide = states.dtype in (torch.float32, torch.float64)
    return bool((ours - wanted).abs().max() <= (1e-4 if wide else 5e-2) * wanted.abs().max().clamp_min(1e-6))
