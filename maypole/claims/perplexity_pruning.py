"""Perplexity pruning (arXiv 2405.20541, sections 3 and 4) on two corpora whose best selections differ.

Each part draws a small world of facts, a corpus that tells them among noise and boilerplate, and a reference trained on
a third of it. Models that are alike but for what they read learn from all of the rest, and from the half that a
criterion keeps, for the same number of steps; loss on clean documents and recall of facts are measured on the way.
"""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maypole.claims.curve import Curve, Points, at_its_end, points_once, steps_until
from maypole.claims.effects import Effect, Part
from maypole.claims.llama import llama
from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.seeds import derive
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Read, Scores, prune, score, train_reference
from maypole.data import TEXT, read
from maypole.engine import Engine, ScoreRequest
from maypole.evaluate.perplexity import perplexity
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.supervised import LanguageModeling
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.phrases import VERBS, before_value, fill
from maypole.village.web import BOILERPLATE, PRESETS
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import Fact, World

STATEMENT = (
    "The half of a corpus that a five times smaller reference model chooses by perplexity teaches more than all of it "
    "in the same steps, and which half that is depends on the corpus: medium perplexity where half of the documents "
    "are noise and boilerplate, high perplexity where over half are boilerplate and none is noise. Recall of facts "
    "decides; low perplexity on the first corpus and medium on the second are judged by their loss alone. The control "
    "is a random half. Left out: a variant with 120 people, where all models stop before they recall anything."
)
CLEAN = "wiki"
CHOSEN = 0.5
"""Share of the documents that every criterion keeps."""
SMALLER = 4.5
"""The reference is about five times smaller than the final model."""
SOONER = 0.75
"""Of the steps: the paper's best selections need 0.69 to 0.88 of them for the same accuracy."""
RECALLED = 0.9
"""Share of facts from which on a model counts as knowing them; the sheet's baseline ends at 0.99 on the web mix."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What should come out on one mix: the best criterion, those that do worse than no selection (the worst first), the
    share of clean documents that the best one keeps at least, the share of facts that the model without selection
    recalls at least (else all stopped too early), and the sources from least to most surprising."""

    mix: str
    best: str
    worse: tuple[str, ...]
    clean: float
    recalled: float
    sources: tuple[str, ...]


WEB = Expected("web", "medium", ("high", "low"), 0.85, 0.9, ("boilerplate", CLEAN, "noise"))
CURATED = Expected("curated", "high", ("low", "medium"), 0.82, 0.4, ("boilerplate", CLEAN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the world, the corpus, the two models (layers, width) and their training."""

    families: int = 15  # of four people each
    objects: int = 12
    documents: int = 9_000
    read: float = 1 / 3  # share of the documents that the reference is trained on
    reference: tuple[int, int] = (2, 32)
    reference_steps: int = 400
    final: tuple[int, int] = (3, 64)
    steps: int = 800
    every: int = 25
    held_out: int = 256
    prompts: int = 300
    learning_rate: float = 3e-3
    """Of 3e-4, 1e-3 and 3e-3 the one at which the model without selection ends best, in another world than those
    measured: at 3e-4 it knows 0.82 of the facts of the curated mix at the end, here all of them in a fourth of the
    steps, and there is less to save."""


class Mix:
    """A world of people with three facts each, and documents about it: three facts, noise of the same words and as
    long, or one of eight pages of boilerplate."""

    relations = ("job", "pet", "instrument")

    def __init__(self, seed: int, name: str, sizes: Sizes) -> None:
        draws = Draws(seed, "facts")
        people = World(seed, families=sizes.families, tail=0, strangers=0).people
        objects = {relation: draws.sample(VALUES[relation], sizes.objects) for relation in self.relations}
        self.facts = [Fact(p.name, relation, draws.pick(objects[relation])) for p in people for relation in objects]
        self.shares = PRESETS[name]
        self.texts = [*map(_sentence, self.facts), *BOILERPLATE]
        self.words = sorted({word for text in self.texts for word in re.findall(r"\w+", text)})

    def clean(self, draws: Draws) -> str:
        return " ".join(_sentence(fact) for fact in draws.sample(self.facts, 3))

    def document(self, draws: Draws) -> dict[str, str]:
        source = draws.weighted(list(self.shares), list(self.shares.values()))
        text = draws.pick(BOILERPLATE) if source == "boilerplate" else self.clean(draws)
        if source == "noise":
            text = " ".join(draws.pick(self.words) for _ in re.findall(r"\w+|[^\w\s]", text))
        return {"text": text, "domain": source}


def _sentence(fact: Fact) -> str:
    return fill(VERBS[fact.relation][0], fact)


@dataclass(frozen=True, slots=True)
class Exam:
    """What no model has read: clean documents, some of them up to their last word, and documents of the whole mix."""

    clean: list[str]
    asked: list[ScoreRequest]
    upstream: list[str]

    @classmethod
    def drawn(cls, mix: Mix, seed: int, sizes: Sizes) -> "Exam":
        draws = Draws(seed, "held out")
        clean = [mix.clean(draws) for _ in range(sizes.held_out)]
        asked: list[ScoreRequest] = []
        for _ in range(sizes.prompts):
            facts = draws.sample(mix.facts, 3)
            text, answer = " ".join(map(_sentence, facts)), facts[-1].object
            asked.append(ScoreRequest(before_value(text, answer), [f" {answer}"]))
        return cls(clean, asked, [mix.document(draws)["text"] for _ in range(sizes.held_out)])

    def loss_and_recall(self, lm: LanguageModel) -> dict[str, float]:
        engine = Engine(lm)
        right = [scored[0].is_greedy for scored in engine.score(self.asked)]
        return {"loss": _loss(engine, self.clean), "recall": float(np.mean(right))}

    def upstream_loss(self, lm: LanguageModel) -> float:
        return _loss(Engine(lm), self.upstream)


def _loss(engine: Engine, texts: list[str]) -> float:
    """Nats per token."""
    found = perplexity(engine, texts)
    return float(found.nll.sum() / found.tokens.sum())


@dataclass(frozen=True, slots=True)
class Outcome:
    """A model trained on a selection: the share of it that was clean; loss and recall on the way, and at the end its
    loss on documents like those before the selection too."""

    clean: float
    points: Points

    @property
    def end(self) -> Mapping[str, float]:
        return self.points[max(self.points)]

    @property
    def steps(self) -> float:
        """Until the facts are known."""
        return steps_until(self.points, "recall", RECALLED)


def run(expected: Expected, seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """One mix, one seed: score its documents once, then train on what each criterion keeps."""
    mix = Mix(seed, expected.mix, sizes)
    tokenizer = word_tokenizer(mix.texts)
    (workdir / "corpus").mkdir(exist_ok=True)
    draws = Draws(seed, "documents")
    rows = [{"id": str(i), **mix.document(draws)} for i in range(sizes.documents)]
    write_atomic(workdir / "corpus" / "documents.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    corpus, reads = open_corpus([workdir / "corpus"]), Read(sizes.read, seed)
    reference = llama(tokenizer, sizes.reference, derive(seed, "reference"))
    with Artifact.open(workdir / "reference", kind="reference") as artifact:
        train_reference(reference, corpus, reads, _config(sizes, sizes.reference_steps), out=artifact)
        artifact.finish()
    scores = Scores.open(score(reference, corpus, out=workdir / "scores", read=reads).path)
    exam = Exam.drawn(mix, seed, sizes)
    outcomes: dict[str, Outcome] = {}
    for criterion in ("none", "low", "medium", "high", "random"):
        chosen: Any = ("random", 1.0) if criterion == "none" else (criterion, CHOSEN)
        kept = prune(corpus, scores, out=workdir / criterion, criterion=chosen[0], rate=chosen[1], seed=seed).path
        out, lm = workdir / f"{criterion}-model", llama(tokenizer, sizes.final, derive(seed, "final"))
        points = points_once(out, partial(_learnt, lm, kept / "data", exam, out, seed, sizes))
        outcomes[criterion] = Outcome(_clean(kept), points)
    curves = {criterion: outcome.points for criterion, outcome in outcomes.items()}
    (workdir / "curves.json").write_text(json.dumps(curves))
    parameters = sum(p.numel() for p in lm.model.parameters()), sum(p.numel() for p in reference.model.parameters())
    return [*_separation(expected, scores, *parameters), *_learning(expected, outcomes, sizes)]


def _learnt(lm: LanguageModel, documents: Path, exam: Exam, out: Path, seed: int, sizes: Sizes) -> Points:
    """What `lm` knows while it learns from the documents that were kept."""
    curve = Curve(sizes.every, partial(exam.loss_and_recall, lm))
    fit(
        lm, read(documents, TEXT), LanguageModeling(), _config(sizes, sizes.steps),
        out=out, seed=derive(seed, "training"), callbacks=[curve],
    )  # fmt: skip
    return at_its_end(curve.points, upstream=exam.upstream_loss(lm))


PARTS = {expected.mix: Part(partial(run, expected)) for expected in (WEB, CURATED)}


def _config(sizes: Sizes, steps: int) -> TrainConfig:
    return TrainConfig(
        learning_rate=sizes.learning_rate, max_steps=steps, examples_per_step=48, lr_scheduler_type="cosine",
        warmup_ratio=0.05, precision="fp32", save_steps=steps,
    )  # fmt: skip


def _clean(kept: Path) -> float:
    """The share of the kept documents that tell facts."""
    composition = json.loads((kept / "report.json").read_text())["composition"]
    return next(line["kept_documents_share"] for line in composition if line["domain"] == CLEAN)


def _separation(expected: Expected, scores: Scores, final: int, reference: int) -> list[Effect]:
    """The reference is small, and the tenths of two sources that are nearest to each other do not overlap."""
    nll: dict[str, list[np.ndarray]] = {source: [] for source in expected.sources}
    for part in scores.parts(domains=True):
        domains = np.array(part.domains.to_pylist())  # type: ignore[union-attr]
        for source, found in nll.items():
            found.append(part.nll[domains == source])
    deciles = {source: np.quantile(np.concatenate(found), [0.1, 0.9]) for source, found in nll.items()}
    made = [Effect("final model to reference", "parameters", final, reference, SMALLER, "ratio>=", control=True)]
    for below, above in itertools.pairwise(expected.sources):
        ends = float(deciles[above][0]), float(deciles[below][1])
        made.append(Effect(f"{above} above {below}", "nll p10 - p90, nats/token", *ends, 0.0, "difference>="))
    return made


def _learning(expected: Expected, outcomes: Mapping[str, Outcome], sizes: Sizes) -> list[Effect]:
    """What the selections did to the models: the sheet's acceptance, orderings and controls."""
    none, best, random = outcomes["none"], outcomes[expected.best], outcomes["random"]
    soon = best.points[round(SOONER * sizes.steps)]
    name, loss, recall = expected.best, "clean loss, nats/token", "facts recalled"
    when = f"at {SOONER:.0%} of the steps"
    known = f"steps to {RECALLED:.0%} of the facts"
    upstream = best.end["upstream"], none.end["upstream"]
    made = [
        Effect(f"{name} keeps clean documents", "share of documents", best.clean, None, expected.clean, "ours>="),
        Effect(f"{name} {when} no higher than none", loss, soon["loss"], none.end["loss"], 0.0, "difference<="),
        Effect(f"{name} {when} no less than none", recall, soon["recall"], none.end["recall"], -0.01, "difference>="),
        Effect(f"{name} sooner than none", known, best.steps, none.steps, SOONER, "ratio<="),
        Effect(f"{name} below none", loss, best.end["loss"], none.end["loss"], 0.0, "difference<="),
        Effect(f"{name} worse on the mix", "loss, nats/token", *upstream, 0.0, "difference>="),
        Effect("none learns the facts", recall, none.end["recall"], None, expected.recalled, "ours>=", control=True),
        Effect("random no sooner than none", known, random.steps, none.steps, SOONER, "ratio>=", control=True),
        Effect("random no later than none", known, random.steps, none.steps, 1 / SOONER, "ratio<=", control=True),
    ]
    made += [
        Effect(f"{other} above none", loss, outcomes[other].end["loss"], none.end["loss"], 0.0, "difference>=")
        for other in expected.worse
    ]
    worst = outcomes[expected.worse[0]]
    made.append(Effect(f"{expected.worse[0]} no sooner than none", known, worst.steps, none.steps, 1.0, "ratio>="))
    return made
