"""What the benchmarks of the engine have generated: prompts, how far each is continued, and how `generate` does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peers.random_llamas import SIZES

CHATS = [
    619, 393, 183, 191, 393, 209, 212, 192, 800, 360, 192, 232, 232, 191, 351, 351, 619, 191, 393, 248, 248, 360, 360,
    393, 209, 232, 232, 800, 360, 269, 360, 195, 800, 393, 269, 256, 232, 303, 269, 209, 251, 209, 800, 183, 800, 192,
    393, 192, 212, 313, 800, 196, 195, 212, 195, 351, 393, 351, 232, 251, 232, 196, 351, 360,
]  # fmt: skip
"""Tokens of answers in figure 14 of arXiv 2405.19888."""
Tokens = list[list[int]]


@dataclass(frozen=True)
class Work:
    """Prompts, and how many tokens each is continued by; the first `shared` of each prompt are the same."""

    prompts: Tokens
    lengths: list[int]
    shared: int = 0


def work_of(arm: Mapping[str, Any]) -> Work:
    """What an arm is asked for; no completion is longer than its `most`, where it has one."""
    draw = np.random.default_rng(0)
    count, vocabulary = arm["count"], SIZES[arm["size"]]["vocab_size"]
    if arm["work"] == "mixed":
        prompts = [ids_of(draw, int(n), vocabulary) for n in draw.integers(16, 257, count)]
        lengths = CHATS[:count] if arm["lengths"] == "chats" else draw.integers(183, 801, count)
        return Work(prompts, [min(int(n) // 4, arm.get("most", 1000)) for n in lengths])
    if arm["work"] == "prefix":
        common = ids_of(draw, arm["prefix"], vocabulary)
        prompts = [common + ids_of(draw, arm["tail"], vocabulary) for _ in range(count)]
        return Work(prompts, [arm["new"]] * count, len(common))
    return Work([ids_of(draw, arm["prompt"], vocabulary) for _ in range(count)], [arm["new"]] * count)


def ids_of(draw: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    return draw.integers(300, vocabulary, count).tolist()


def padded_batches(model: Any, work: Work, size: int) -> Tokens:
    """Batches in order of arrival, padded on the left; each runs until its longest is done."""
    found: Tokens = []
    for a in range(0, len(work.prompts), size):
        batch, wanted = work.prompts[a : a + size], work.lengths[a : a + size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch], device=model.device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        new = max(wanted)
        out = model.generate(
            ids, attention_mask=seen, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        found += [row[width : width + n] for row, n in zip(out.tolist(), wanted)]
    return found


def said(tokens: Tokens) -> dict[str, float]:
    return {f"{i}.{j}": float(token) for i, row in enumerate(tokens) for j, token in enumerate(row)}
