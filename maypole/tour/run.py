"""A tour from start to end: what is asked, the plan, the stages in order.

Knows nothing about how a stage does its work or what a report says.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from maypole.core.progress import say
from maypole.core.seeds import derive
from maypole.tour.adapt import adapt
from maypole.tour.align import align
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus, load_corpus
from maypole.tour.curate import chosen, curate
from maypole.tour.evaluate import evaluate
from maypole.tour.folder import opened
from maypole.tour.options import TourOptions
from maypole.tour.plan import Plan, available, divide
from maypole.tour.probe import probe
from maypole.tour.report import Report
from maypole.tour.report.words import counted
from maypole.tour.serve import serve
from maypole.tour.tale import Tale


def run_tour(options: TourOptions, begun: float | None = None) -> Report:
    """Do what is left of the tour in ``options.out`` and return its report; Ctrl-C keeps all that is done.

    `begun` is when the clock of the minutes started, by `time.monotonic`; default: now.
    """
    begun = time.monotonic() if begun is None else begun
    base = Base.of(options.model)
    with opened(options.out) as folder:
        corpus = load_corpus(options.corpus)
        plan = folder.plan(_asked(options, base, corpus), lambda: _decide(options, base, corpus, begun))
        say(f"model {base.name}  corpus {corpus.summary}  -> {options.out}/")
        with _threads(options.threads or plan.threads), Tale(options, base, corpus, plan, folder) as tale:
            curated = tale.stage(
                "curate", f"{plan.curate.documents + plan.curate.noise:,} documents to choose from",
                plan.curate.seconds, config=plan.curate,
                inputs={"model": base.place, "corpus": corpus.train, "held_out": corpus.held_out},
                work=lambda artifact: curate(base, corpus, plan.curate, artifact, seed=derive(options.seed, "curate")),
            )  # fmt: skip
            learnt = chosen(curated, corpus)
            adapted = tale.stage(
                "adapt", f"{plan.adapt.steps:,} steps", plan.adapt.seconds,
                config=plan.adapt, inputs={"model": base.place, "corpus": learnt.train},
                work=lambda artifact: adapt(base, learnt, plan.adapt, artifact, seed=derive(options.seed, "adapt")),
            )  # fmt: skip
            tuned = adapted if not plan.align.rounds else tale.stage(
                "align", f"{plan.align.steps:,} steps, {counted(plan.align.rounds, 'round')}", plan.align.seconds,
                config=plan.align, inputs={"adapted": adapted, "corpus": learnt.train, "held_out": corpus.held_out},
                work=lambda artifact: align(
                    base, learnt, plan.align, adapted, artifact, seed=derive(options.seed, "align")
                ),
            )  # fmt: skip
            tale.stage(
                "serve", f"{plan.serve.parts + 1} calls, with and without sharing",
                plan.serve.seconds, config=plan.serve,
                inputs={"model": base.place, "tuned": tuned, "corpus": corpus.held_out},
                work=lambda artifact: serve(base, corpus, plan.serve, tuned, artifact),
            )  # fmt: skip
            tale.stage(
                "evaluate", f"{plan.evaluate.documents:,} documents, {plan.evaluate.questions:,} questions",
                plan.evaluate.seconds,
                config=plan.evaluate, inputs={"tuned": tuned, "corpus": corpus.held_out},
                work=lambda artifact: evaluate(base, corpus, plan.evaluate, tuned, artifact, options.seed),
            )  # fmt: skip
        return tale.report


def _asked(options: TourOptions, base: Base, corpus: Corpus) -> dict[str, Any]:
    return {
        "model": base.name,
        "model_identity": base.identity,
        "corpus": corpus.name,
        "corpus_identity": corpus.identity,
        "minutes": options.minutes,
        "seed": options.seed,
        "own_data_only": options.own_data_only,
    }


def _decide(options: TourOptions, base: Base, corpus: Corpus, begun: float) -> Plan:
    say("plan: measuring this machine for a few seconds")
    threads = options.threads or base.threads or torch.get_num_threads()
    instruct = not options.own_data_only
    with _threads(threads):
        rates = probe(base, corpus, instruct=instruct, seed=options.seed)
    preparation = round(time.monotonic() - begun, 1)
    curated, adapted, aligned, served, evaluated = divide(
        rates, available(options.minutes, preparation), train=len(corpus.train), held_out=len(corpus.held_out),
        noise=options.corpus is None and instruct, instruct=instruct, general=instruct or not base.own,
        questions=instruct,
    )  # fmt: skip
    return Plan(
        asked=_asked(options, base, corpus), threads=threads, preparation=preparation, rates=rates,
        curate=curated, adapt=adapted, align=aligned, serve=served, evaluate=evaluated,
    )  # fmt: skip


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
