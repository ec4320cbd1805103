"""What a run will cost, said before its first step: trainable weights, padding saved, memory and time.

Knows nothing about losses.
"""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from maypole.core.progress import duration, say
from maypole.models.attention import packed_execution
from maypole.models.forward import packed_hidden
from maypole.models.head import TOGETHER, head_of, rows_at_once, weighted_logprobs
from maypole.models.language_model import LanguageModel
from maypole.models.quantized import count
from maypole.models.score_head import has_score_head, score_states
from maypole.train.batch import pack
from maypole.train.precision import KEPT_CODE_BYTES, Arithmetic, autocast, masters
from maypole.train.source import Source
from maypole.train.tokens import TokenStore

log = logging.getLogger("maypole.train")

TRIAL_OPERATIONS = 20_000_000_000
"""Operations of a trial: small models see up to 384 tokens of their rows, large ones at least 64."""

ALLOCATED = 1.25
"""Bytes that an allocator holds for activations per byte of them, as measured: their sizes change with every batch."""


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
    cut: dict[str, int]

    def announce(self) -> None:
        """Say it to whoever watches, and to run.log."""
        share = 100 * self.trainable / self.parameters
        repeated = f", repeated prompts {self.sharing_ratio:.2f} times" if self.sharing_ratio > 1.005 else ""
        left_out = f"; rows left out: {', '.join(f'{n:,} ({why})' for why, n in self.dropped.items())}"
        cut = f"; cut at max_length: {', '.join(f'{name} {n:,}' for name, n in self.cut.items())}"
        lines = (
            f"{self.trainable:,} of {self.parameters:,} parameters learn ({share:.3g} %), in {self.steps:,} steps",
            f"about {self.tokens:,} tokens; padded batches would compute {self.padding_ratio:.2f} times as many"
            f"{repeated}{left_out if self.dropped else ''}{cut if self.cut else ''}",
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


def estimate(lm: LanguageModel, source: Source, plan: dict[str, Any]) -> Estimate:
    """Of the run that `plan` describes, from the tokens of its first round and a trial on a few of its rows."""
    store = source.store
    rng = np.random.default_rng(0)
    sample = store.lengths_of(rng.permutation(len(store))[:4096])
    width = min(source.examples_per_step, len(sample))
    padded = sum(int(chunk.max()) * len(chunk) for chunk in np.array_split(sample, max(len(sample) // width, 1)))
    parameters = list(lm.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    tokens = int(sample.mean() * source.examples_per_step * source.steps)
    recomputed = 4 / 3 if plan["gradient_checkpointing"] else 1.0
    seconds = tokens * trial(lm, source, plan["precision"]).seconds_per_token * recomputed
    return Estimate(
        trainable, count(lm.model), source.steps, tokens, padded / int(sample.sum()),
        store.unshared_tokens / store.tokens, peak_memory(lm, source, plan), seconds, plan["precision"],
        store.dropped, store.cut,
    )  # fmt: skip


def choose_checkpointing(lm: LanguageModel, source: Source, plan: dict[str, Any]) -> bool:
    """Recompute activations only where keeping them would take more than four fifths of the memory there is."""
    if lm.device.type == "cuda":
        available = torch.cuda.get_device_properties(lm.device).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(lm, source, {**plan, "gradient_checkpointing": False}) > 0.8 * available


def peak_memory(lm: LanguageModel, source: Source, plan: dict[str, Any]) -> int:
    """Bytes at the largest step: what is there before it, gradients and moments, activations, logits of the head."""
    config: Any = lm.transformer.config.get_text_config()
    seen = trial(lm, source, plan["precision"])
    parameters = list(lm.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    longest = int(source.store.lengths_of(np.arange(min(len(source.store), 100_000))).max())
    step = int(source.store.lengths_of(np.arange(min(len(source.store), 4096))).mean() * source.examples_per_step)
    tokens = max(min(plan["tokens_per_batch"], step), longest)
    layers = config.num_hidden_layers
    layer = seen.saved_per_token * tokens / layers
    kept = layer + 4 * config.hidden_size * layers * tokens if plan["gradient_checkpointing"] else layer * layers
    activations = ALLOCATED * (kept + layer)  # the gradients of a layer's activations stand beside them
    logits = rows_at_once(lm.device) * config.vocab_size * (4 + 4 + 2) + 4 * config.vocab_size * config.hidden_size
    head = 0 if has_score_head(lm.model) else logits
    if head and head_of(lm.model).weight.requires_grad:  # errors wait for its gradient
        head += (2 if plan["precision"] == "bf16" else 4) * min(TOGETHER, tokens * config.vocab_size)
    code = KEPT_CODE_BYTES if plan["precision"] == "bf16" and lm.device.type == "cpu" else 0
    optimiser = 4 * (1 + source.moments) * trainable  # with the gradient
    return int(seen.there + optimiser + seen.saved_always + activations + head + code)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a few rows of the run needed. there: bytes before them; saved: bytes kept from forward for backward, in all
    cases (weights in the precision of the arithmetic) and per token."""

    there: int
    saved_always: float
    saved_per_token: float
    seconds_per_token: float


_trials: WeakKeyDictionary[Source, Trial] = WeakKeyDictionary()


def trial(lm: LanguageModel, source: Source, arithmetic: Arithmetic) -> Trial:
    """Forward and backward on some rows, then on the same rows twice: what does not double does not grow with tokens.

    In eval mode, so that no random number is drawn. Once per source.
    """
    if source not in _trials:
        with masters(lm.model, arithmetic, torch.float32):
            _trials[source] = _tried(lm, source.store, arithmetic)
    return _trials[source]


def _tried(lm: LanguageModel, store: TokenStore, arithmetic: Arithmetic) -> Trial:
    there = torch.cuda.memory_allocated(lm.device) if lm.device.type == "cuda" else _resident()
    weights = count(lm.model)
    wanted = min(max(TRIAL_OPERATIONS // (6 * weights), 64), 384)
    rows = np.random.default_rng(0).permutation(len(store))
    rows = rows[: 1 + int(np.searchsorted(np.cumsum(store.lengths_of(rows)), wanted))]
    once = int(store.lengths_of(rows).sum())
    training = lm.model.training
    lm.model.eval()
    try:
        saved, _ = _passes(lm, store, rows, arithmetic)
        saved_twice, seconds = _passes(lm, store, np.concatenate([rows, rows]), arithmetic)
    finally:
        lm.model.train(training)
        for parameter in lm.model.parameters():
            parameter.grad = None
    return Trial(there, max(2 * saved - saved_twice, 0), (saved_twice - saved) / once, seconds / (2 * once))


def _passes(lm: LanguageModel, store: TokenStore, rows: np.ndarray, arithmetic: Arithmetic) -> tuple[int, float]:
    """Bytes that forward keeps for backward, and the seconds of both."""
    mine = {t.untyped_storage().data_ptr() for t in (*lm.model.parameters(), *lm.model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    begin = time.perf_counter()
    batch = pack(store, rows, lm.device)
    watched = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with packed_execution(lm.model), torch.enable_grad(), autocast(arithmetic, lm.device), watched:
        hidden = packed_hidden(lm.model, batch.input_ids, batch.plan).index_select(0, batch.source)
        if has_score_head(lm.model):
            total = score_states(lm.model, hidden).sum()
        else:
            head = head_of(lm.model)
            total, _ = weighted_logprobs(
                hidden, head.weight, batch.target, batch.weights, bias=head.bias, softcap=head.softcap, scale=head.scale
            )
    total.backward()
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return sum(kept.values()), time.perf_counter() - begin


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
