"""What scoring would take, found out from the first documents of a corpus. Knows nothing about files or commands."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from datasets import Dataset

from maypole.core.config import DryRun
from maypole.curate.corpus import Corpus, Document, count_rows, documents
from maypole.curate.perplexity_pruning.scores import Reading
from maypole.curate.perplexity_pruning.scoring import readable
from maypole.curate.perplexity_pruning.split import Read
from maypole.engine import Engine, EngineConfig
from maypole.evaluate.perplexity import document_nll
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.dry_run import dry_run as training
from maypole.train.supervised import LanguageModeling

PREVIEWED = 1000
"""Documents that are looked at."""
TRIAL_SECONDS = 1.0


def dry_run(
    lm: LanguageModel,
    corpus: Corpus,
    *,
    reading: Reading,
    read: Read,
    train: TrainConfig,
    tokens_per_batch: int | Literal["auto"] = "auto",
    seed: int = 0,
) -> DryRun:
    """The plan for scoring `corpus` by `lm`, and for training it before where `read` has a share.

    Rows are those of the first documents; time assumes that the rest is like them.
    """
    engine = Engine(lm, EngineConfig(max_batch_tokens=tokens_per_batch))
    every = (document for shard in corpus.shards for batch in documents(shard, corpus.columns) for document in batch)
    first = list(islice(every, PREVIEWED))
    dropped: Counter[str] = Counter()
    kept = readable(first, read, dropped)
    rows = sum(map(count_rows, corpus.shards))
    seconds = _seconds(engine, kept, reading) * rows / len(first)
    unit = 1 if sys.platform == "darwin" else 1024
    memory, steps = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None
    if read.share and kept:
        texts = Dataset.from_dict({"text": [document.text for document in kept]})
        plan = training(lm, texts, round(rows * read.share), LanguageModeling(), train, seed=seed)
        steps, seconds = plan.steps, seconds + 60 * (plan.minutes or 0)
        memory = max(memory, plan.peak_memory_bytes or 0)
    return DryRun(
        rows_kept=len(kept),
        rows_dropped=dict(dropped),
        steps=steps,
        minutes=round(seconds / 60, 2),
        peak_memory_bytes=memory,
    )


def _seconds(engine: Engine, documents: Sequence[Document], reading: Reading) -> float:
    """What scoring `documents` takes: twice as many at a time until some take a second; these tell for all."""
    done, spent, piece = 0, 0.0, documents[:0]
    while done < len(documents) and spent < TRIAL_SECONDS:
        piece = documents[done : 2 * done + 1]
        began = time.perf_counter()
        document_nll(
            engine, [d.text for d in piece], max_length=reading.max_length, max_tokens=reading.max_tokens
        )
        done, spent = done + len(piece), time.perf_counter() - began
    return spent / max(len(piece), 1) * len(documents)
