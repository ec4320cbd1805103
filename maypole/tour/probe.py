"""A few seconds with the model at hand: how quickly it learns, scores and answers here. Knows nothing about minutes."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from maypole.core.artifact import Artifact
from maypole.core.progress import is_quiet, set_quiet
from maypole.core.seeds import derive
from maypole.engine.engine import Engine
from maypole.engine.request import Request, Sampling
from maypole.evaluate.perplexity import perplexity
from maypole.models.language_model import LanguageModel
from maypole.tour.adapt import length_of, recipe
from maypole.tour.base import Base, reference
from maypole.tour.corpus import Corpus
from maypole.tour.plan import ANSWER_TOKENS, EXAMPLES_PER_STEP, Rates
from maypole.tour.rows import corpus_rows, instruction_rows
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Objective
from maypole.train.tokens import tokenize

SECONDS = 1.6
"""Of each measurement: three, and one of the reference where that is another model."""
DOCUMENTS = 200
SMALL = 30_000_000
"""Parameters up to which a whole step of the tour takes less than a second or two."""


def probe(base: Base, corpus: Corpus, *, instruct: bool, seed: int) -> Rates:
    """Rates of a fresh copy of `base` on rows like those of the tour; `instruct`: instructions are taught too."""
    lm = base.load()
    length, replay = length_of(lm), base.own and instruct
    order = np.random.default_rng(derive(seed, "probe")).permutation(len(corpus.train))
    some = corpus.train.select(order[:DOCUMENTS].tolist())
    some._fingerprint = f"{corpus.train._fingerprint} probe"
    with _silently():
        rows, objective = corpus_rows(lm, some, len(some), replay=replay, length=length, seed=seed)
        store = tokenize(rows, objective, lm.tokenizer, length)
        taught = store
        if instruct:
            made, kind = instruction_rows(lm, some, DOCUMENTS, replay=replay, length=length, seed=seed)
            taught = tokenize(made, kind, lm.tokenizer, length)
        scoring, answering = _inference(lm, some)
        reading = scoring if base.own else _reading(reference(), some)
        learning = _learning(lm, rows, objective, base.own)
    texts = some["text"][:50]
    tokens = [len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return Rates(
        train_tokens_per_second=round(learning, 1),
        score_tokens_per_second=round(scoring, 1),
        reference_tokens_per_second=round(reading, 1),
        answers_per_second=round(answering, 2),
        tokens_a_document=round(float(np.mean(tokens)), 1),
        rows_a_document=round(len(store) / len(some), 3),
        tokens_a_row=round(store.tokens / len(store), 1),
        tokens_an_instruction_row=round(taught.tokens / len(taught), 1),
    )


def _learning(lm: LanguageModel, rows: Dataset, objective: Objective, own: bool) -> float:
    """Training tokens per second of real steps, the optimiser's part included."""
    parameters = sum(p.numel() for p in lm.model.parameters())
    examples = EXAMPLES_PER_STEP if parameters <= SMALL or lm.device.type == "cuda" else 1
    config = TrainConfig(
        examples_per_step=examples, max_steps=10_000, max_length=length_of(lm), logging_steps=1, save_steps=10_000,
        peft=recipe(lm, own).peft,
    )  # fmt: skip
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory(prefix="maypole-probe-") as folder:
        run = Artifact.open(Path(folder, "run"), kind="probe")
        with run:
            fit(lm, rows, objective, config, out=run, callbacks=(watch,))
            tokens = {line["step"]: line["tokens"] for line in run.metrics.read() if "tokens" in line}
    return (tokens[watch.step] - tokens[1]) / (watch.last - watch.first)


class _Stopwatch(TrainerCallback):
    """Ends a run when it has been measured for long enough; its first step warms up and does not count."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.step = 0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step, self.last = state.global_step, time.perf_counter()
        if self.step == 1:
            self.first = self.last
        elif self.last - self.first > SECONDS:
            control.should_training_stop = True


def _inference(lm: LanguageModel, texts: Dataset) -> tuple[float, float]:
    """(scored tokens, short answers) per second."""
    engine = Engine(lm)
    ids = engine.encode("What is the first of these words: alpha beta gamma?")
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)

    def answer(n: int) -> float:
        return len(engine.generate([Request([i, *ids], sampling) for i in range(1, n + 1)]))

    found = _reading(lm, texts), _rate(answer, 64)
    engine.close()
    return found


def _reading(lm: LanguageModel, texts: Dataset) -> float:
    """Scored tokens per second."""
    engine = Engine(lm)
    length = length_of(lm)
    return _rate(lambda n: float(perplexity(engine, texts[:n]["text"], max_length=length).tokens.sum()), len(texts))


def _rate(work: Callable[[int], float], most: int) -> float:
    """Units per second of `work(n)`, with n doubled up to `most` until the time is over; the last n counts."""
    begin, n = time.perf_counter(), 1
    while True:
        start = time.perf_counter()
        units = work(n)
        end = time.perf_counter()
        if end - begin > SECONDS:
            return units / (end - start)
        n = min(2 * n, most)


@contextmanager
def _silently() -> Iterator[None]:
    quiet = is_quiet()
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(quiet)
