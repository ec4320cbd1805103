"""How much of everything fits into the minutes: decided once, from a few seconds' probe of the model at hand.

Knows nothing about what the stages do with their share.
"""

import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from maypole.core.seeds import derive
from maypole.engine.engine import Engine
from maypole.engine.request import Request, Sampling
from maypole.models.attention import packed_execution
from maypole.models.language_model import LanguageModel
from maypole.train.batch import pack
from maypole.train.precision import autocast, decide
from maypole.train.step import loss_of
from maypole.train.supervised import LanguageModeling
from maypole.train.tokens import tokenize

SHARES = {"adapt": 70.0, "evaluate": 30.0}
"""Seconds of a six-minute tour, before they are scaled to the minutes and the stages there are."""
RESERVE = 0.2
CORPUS_SHARE = 0.75
"""Of the adapt stage's seconds; the rest goes to instructions."""
REPLAY_SHARE = 0.3
EXAMPLES_PER_STEP = 16
PROBE_SECONDS = 2.0
MAX_PASSES = 3


def length_of(lm: LanguageModel) -> int:
    """Longest training row of a tour."""
    return min(256, lm.max_length)


def make_plan(lm: LanguageModel, train: Dataset, held_out: Dataset, minutes: float, seed: int) -> dict[str, Any]:
    """Steps and items per stage. A stage takes them from here and never looks at the clock."""
    rates = probe(lm, train, seed)
    scale = 60.0 * minutes * (1.0 - RESERVE) / sum(SHARES.values())
    seconds = {name: share * scale for name, share in SHARES.items()}
    sample = tokenize(train.select(range(min(200, len(train)))), LanguageModeling(), lm.tokenizer, length_of(lm))
    mean = float(sample.lengths_of(np.arange(len(sample))).mean())
    rows_there = len(sample) / min(200, len(train)) * len(train)
    learnt = seconds["adapt"] * rates["train_tokens_per_second"]
    rows = int(CORPUS_SHARE * learnt / mean)
    corpus_rows = int(min(rows * (1 - REPLAY_SHARE), MAX_PASSES * rows_there))
    instruction_rows = int((1 - CORPUS_SHARE) * learnt / 40)
    # Before and after; half of the seconds for perplexities, half for answers.
    tokens = seconds["evaluate"] / 4 * rates["score_tokens_per_second"]
    documents = int(tokens / 2 / mean)
    answers = int(seconds["evaluate"] / 4 * rates["answers_per_second"])
    return {
        "rates": rates,
        "adapt": {
            "seconds": round(seconds["adapt"]),
            "corpus_rows": max(corpus_rows, EXAMPLES_PER_STEP),
            "instruction_rows": min(max(instruction_rows, 4 * EXAMPLES_PER_STEP), 6000),
        },
        "evaluate": {
            "seconds": round(seconds["evaluate"]),
            "documents": min(max(documents, 20), len(held_out)),
            "questions": min(max(answers, 48), 600),
        },
    }


def probe(lm: LanguageModel, train: Dataset, seed: int) -> dict[str, float]:
    """Measured tokens per second of a training step and a forward pass, and short answers per second."""
    arithmetic = decide("auto", lm.device)
    first = train.select(range(min(60, len(train))))
    store = tokenize(first, LanguageModeling(), lm.tokenizer, length_of(lm))
    rows = np.arange(min(len(store), 12))
    batch = pack(store, rows).to(lm.device)
    wanted = [(p, p.requires_grad) for p in lm.model.parameters()]
    lm.model.requires_grad_(True)

    def passes(backward: bool) -> float:
        done, begin = 0, 0.0
        while done < 2 or time.perf_counter() - begin < PROBE_SECONDS:
            with packed_execution(lm.model), torch.set_grad_enabled(backward), autocast(arithmetic, lm.device):
                loss = loss_of(lm.model, batch, LanguageModeling(), first, rows, None, Counter())
            if backward:
                loss.backward()
            done += 1
            if done == 1:  # the first pass warms up
                begin = time.perf_counter()
        return (done - 1) * len(batch.input_ids) / (time.perf_counter() - begin)

    try:
        learning, scoring = passes(True), passes(False)
    finally:
        for parameter, before in wanted:
            parameter.grad = None
            parameter.requires_grad_(before)
    engine = Engine(lm)
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    ids = derive(seed, "probe") % 100
    requests = [Request(prompt=[(ids + i) % 100 + 1] * 12, sampling=sampling) for i in range(32)]
    begin = time.perf_counter()
    engine.generate(requests)
    answers = len(requests) / (time.perf_counter() - begin)
    engine.close()
    # An optimiser step costs more than its gradient, most for small batches.
    return {
        "train_tokens_per_second": round(0.8 * learning, 1),
        "score_tokens_per_second": round(scoring, 1),
        "answers_per_second": round(answers, 2),
    }
