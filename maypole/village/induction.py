"""Weights with which a small decoder looks things up from its first step: an induction circuit, drawn and not learned.

From other weights a decoder of this size does not find out in millions of tokens that what followed a word once may
follow it again. The circuit takes the first two layers of a family with q and k biases, rotary positions and as many
key heads as heads (Qwen2 so shaped), and everything in it goes on learning. Knows nothing about what is looked up.
"""

from typing import Any

import torch

from maypole.core.errors import ConfigError
from maypole.models.block_views import Blocks
from maypole.models.language_model import LanguageModel

FREQUENCIES = 6
"""Pairs of rotary dimensions that tell near positions apart; the others are left to content."""
SHARPNESS = 6.0
"""Of a bias in them: with it nearly all attention falls on one distance."""
MATCHED = 8.0
"""Times what a query and a key have in common."""
COPIED = 6.0
"""Times the word found, beside what the stream holds already."""
QUIET = 0.2
"""Times everything that writes into the stream and is no part of the circuit."""


@torch.no_grad()
def induce(lm: LanguageModel, view: Blocks, generator: torch.Generator) -> None:
    """Head h of the first layer finds the token h+1 back and writes it into the stream turned by a fixed rotation. Head
    h of the second looks for positions where its own token stands so, and copies the token there: what came after.

    ConfigError where the model's attention lacks what this takes.
    """
    first, second = view.layers[:2]
    config: Any = lm.transformer.config
    heads, width = config.num_attention_heads, config.hidden_size
    if first.q.bias is None or config.num_key_value_heads != heads:
        shape = f"{config.model_type} with {config.num_key_value_heads} key heads of {heads}"
        raise ConfigError("init.induction", shape, "a family with q and k biases, and as many key heads as heads")
    rotation, read, copied = (_orthogonal(width, generator) for _ in range(3))
    for block in view:
        block.down.weight.mul_(QUIET)
    for block in view.layers[2:]:
        block.o.weight.mul_(QUIET)
    _look_back(lm, view, heads)
    for projection in (first.q, first.k):
        projection.weight.mul_(QUIET)
    first.v.write(read)
    first.o.write(rotation @ read.T / width**0.5)
    second.q.write(MATCHED**0.5 * read)
    second.k.write(MATCHED**0.5 * read @ rotation.T)
    second.v.write(copied)
    second.o.write(COPIED * copied.T / width**0.5)


def _look_back(lm: LanguageModel, view: Blocks, heads: int) -> None:
    """Biases whose product, turned by the rotary positions, is largest at a distance of h+1."""
    config: Any = lm.transformer.config
    half = config.hidden_size // heads // 2
    turned = config.rope_parameters["rope_theta"] ** (-torch.arange(FREQUENCIES) / half)
    q: Any = view[0].q.bias
    k: Any = view[0].k.bias
    q, k = q.view(heads, 2 * half).zero_(), k.view(heads, 2 * half).zero_()
    k[:, :FREQUENCIES] = SHARPNESS
    for head in range(heads):
        q[head, :FREQUENCIES] = SHARPNESS * torch.cos((head + 1) * turned)
        q[head, half : half + FREQUENCIES] = -SHARPNESS * torch.sin((head + 1) * turned)


def _orthogonal(width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
