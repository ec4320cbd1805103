"""What a run will cost, said before its first step: trainable weights, padding saved, memory and time.

Knows nothing about losses.
"""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maypole.core.progress import duration, say
from maypole.models.language_model import LanguageModel
from maypole.train.precision import Arithmetic, autocast
from maypole.train.source import Source

log = logging.getLogger("maypole.train")
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """padding_ratio: tokens that padded batches would compute per token here; sharing_ratio: the same for repeated
    prompts; peak_memory_bytes: of the process (of the GPU's tensors on cuda)."""

    trainable: int
    parameters: int
    steps: int
    tokens: int
    padding_ratio: float
    sharing_ratio: float
    peak_memory_bytes: int
    seconds: float
    arithmetic: str
    dropped: dict[str, int]

    def announce(self) -> None:
        """Say it to whoever watches, and to run.log."""
        share = 100 * self.trainable / self.parameters
        repeated = f", repeated prompts {self.sharing_ratio:.2f} times" if self.sharing_ratio > 1.005 else ""
        left_out = f"; rows left out: {', '.join(f'{n:,} ({why})' for why, n in self.dropped.items())}"
        lines = (
            f"{self.trainable:,} of {self.parameters:,} parameters learn ({share:.3g} %), in {self.steps:,} steps",
            f"about {self.tokens:,} tokens; padded batches would compute {self.padding_ratio:.2f} times as many"
            f"{repeated}{left_out if self.dropped else ''}",
            f"about {self.peak_memory_bytes / 1e9:.2g} GB and {duration(self.seconds)} in {self.arithmetic}",
        )
        for line in lines:
            say(f"train: {line}")
            log.info(line)

    def facts(self) -> dict[str, float | int]:
        """What belongs into the manifest."""
        return {
            "trainable_parameters": self.trainable,
            "parameters": self.parameters,
            "padding_ratio": round(self.padding_ratio, 3),
            "sharing_ratio": round(self.sharing_ratio, 3),
        }


def estimate(lm: LanguageModel, source: Source, plan: dict[str, Any], threads: int) -> Estimate:
    """Of the run that `plan` describes, from the tokens of its first round."""
    store = source.store
    rng = np.random.default_rng(0)
    sample = store.lengths_of(rng.permutation(len(store))[:4096])
    width = min(source.examples_per_step, len(sample))
    padded = sum(int(chunk.max()) * len(chunk) for chunk in np.array_split(sample, max(len(sample) // width, 1)))
    parameters = list(lm.model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    tokens = int(sample.mean() * source.examples_per_step * source.steps)
    flops = 2.0 * total * (3 if trainable > total / 2 else 2) * tokens
    seconds = 2.0 * flops / _rate(plan["precision"], lm.device)  # matrix products are half of a step
    return Estimate(
        trainable, total, source.steps, tokens, padded / int(sample.sum()), store.unshared_tokens / store.tokens,
        peak_memory(lm, source, plan), seconds, plan["precision"], store.dropped,
    )  # fmt: skip


def peak_memory(lm: LanguageModel, source: Source, plan: dict[str, Any]) -> int:
    """Bytes at the largest step: what is there now, gradients, Adam's moments, activations of a batch, the head."""
    config: Any = lm.transformer.config
    parameters = list(lm.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    upcast = sum(p.numel() * (4 - p.element_size()) for p in parameters if p.requires_grad and p.element_size() < 4)
    half = plan["precision"] == "bf16"
    longest = int(source.store.lengths_of(np.arange(min(len(source.store), 100_000))).max())
    step = int(source.store.lengths_of(np.arange(min(len(source.store), 4096))).mean() * source.examples_per_step)
    tokens = max(min(plan["tokens_per_batch"], step), longest)
    d, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    heads = config.num_attention_heads
    small = 2 if half else 4
    per_layer = 4 * 8 * d + small * (8 * d + 5 * inner) + heads * min(longest, 256) * (4 + 2 * small)
    if plan["gradient_checkpointing"]:
        activations = tokens * (4 * d * layers + per_layer)
    else:
        activations = tokens * per_layer * layers
    vocabulary = config.vocab_size
    head = _CHUNK * vocabulary * (4 + 4 + small) + (
        vocabulary * d * 8 if trainable > sum(p.numel() for p in parameters) / 2 else 0
    )
    casts = sum(p.numel() for p in parameters) * 2 if half else 0
    there = torch.cuda.memory_allocated() if lm.device.type == "cuda" else _resident()
    return there + upcast + 12 * trainable + activations + head + casts


def choose_checkpointing(lm: LanguageModel, source: Source, plan: dict[str, Any]) -> bool:
    """Recompute activations only where keeping them would take more than four fifths of the memory there is."""
    if lm.device.type == "cuda":
        available = torch.cuda.get_device_properties(lm.device).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(lm, source, {**plan, "gradient_checkpointing": False}) > 0.8 * available


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rate(arithmetic: Arithmetic, device: torch.device) -> float:
    """Measured floating point operations per second of a middling matrix product."""
    a, b = torch.randn(512, 512, device=device), torch.randn(512, 1024, device=device)
    with torch.no_grad(), autocast(arithmetic, device):
        torch.mm(a, b)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < 0.05:
            torch.mm(a, b)[0, 0].item()
            count += 1
    return 2.0 * 512 * 512 * 1024 * count / (time.perf_counter() - begin)
