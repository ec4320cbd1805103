"""A tour from start to end: the stages there are, in order, each an artifact, the report rewritten after each.

Knows nothing about how a stage does its work or how a report looks.
"""

import json
import resource
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.errors import ArtifactError
from maypole.core.identity import digest, identity
from maypole.core.lock import DirectoryLock
from maypole.core.progress import track
from maypole.core.seeds import derive
from maypole.core.statistics import paired_bootstrap
from maypole.evaluate.perplexity import Perplexity, perplexity
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load
from maypole.tour import present
from maypole.tour.adapt import adapt
from maypole.tour.corpus import Corpus, load_corpus
from maypole.tour.plan import length_of, make_plan
from maypole.tour.report import Measure, write
from maypole.tour.skills import KEPT, NEW, ask, questions
from maypole.village.mix import documents
from maypole.village.world import World
from maypole.village.zoo import load_zoo

BASE = "village-4M-prose"
GENERAL = 60
"""Documents of the village for the perplexity on what the base was made for."""


@dataclass(frozen=True, kw_only=True)
class TourSettings:
    """What decides a tour."""

    model: str | None = None
    corpus: Path | None = None
    minutes: float = 6.0
    seed: int = 0
    own_data_only: bool = False


def run(settings: TourSettings, out: Path, command: str) -> list[Measure]:
    """Do what is left of the tour in `out`; its measures, before and after. Ctrl-C keeps all that is done."""
    lock = DirectoryLock.take(out)
    begin = time.monotonic()
    shown = present.Progress(model=settings.model or BASE, corpus="", command=command, out=out)
    try:
        corpus = load_corpus(settings.corpus)
        shown.corpus = f"{corpus.name}, {corpus.characters / 1e6:.1f}M characters in {corpus.documents:,} documents"
        plan = _plan(settings, corpus, out)
        shown.plan = plan
        own_base = settings.model is None
        stage = f"adapt: {plan['adapt']['corpus_rows']:,} rows of the corpus, about {plan['adapt']['seconds']} s"
        present.say(stage)
        inputs = {"corpus": corpus.train, "model": _base_identity(settings)}
        adapted = Artifact.open(
            out / "02-adapt", kind="tour/adapt", config={"plan": plan["adapt"]}, inputs=inputs, seed=settings.seed
        )
        shown.start("adapt")
        with adapted:
            if not adapted.finished:
                lm = base(settings)
                adapt(
                    lm, corpus, plan["adapt"], adapted, own_base=own_base, seed=derive(settings.seed, "adapt"),
                    teach=not settings.own_data_only,
                )  # fmt: skip
                adapted.finish()
        shown.adapted(adapted)
        _write(shown, out, begin, "running")
        present.say(f"evaluate: {plan['evaluate']['documents']} documents, {plan['evaluate']['questions']} questions")
        shown.start("evaluate")
        evaluated = Artifact.open(
            out / "09-evaluate", kind="tour/evaluate", config={"plan": plan["evaluate"]},
            inputs={"adapted": adapted.path, "corpus": corpus.held_out}, seed=settings.seed,
        )  # fmt: skip
        with evaluated:
            if not evaluated.finished:
                _evaluate(settings, corpus, plan["evaluate"], adapted.path, evaluated)
        measures = shown.evaluated(evaluated)
        _write(shown, out, begin, "complete")
        return measures
    except KeyboardInterrupt:
        shown.stop("interrupted")
        _write(shown, out, begin, "interrupted")
        raise
    except Exception as error:
        shown.stop("failed", str(error))
        _write(shown, out, begin, "failed")
        raise
    finally:
        lock.release()


def base(settings: TourSettings) -> LanguageModel:
    """The model a tour starts from, as it was."""
    return load_zoo(BASE) if settings.model is None else load(settings.model)


def _base_identity(settings: TourSettings) -> str:
    return BASE if settings.model is None else str(identity(settings.model))


def _plan(settings: TourSettings, corpus: Corpus, out: Path) -> dict[str, Any]:
    """Decided once; a tour of something else in the same folder is an error."""
    path = out / "plan.json"
    asked = {
        "model": _base_identity(settings), "corpus": digest(*corpus.train["text"], *corpus.held_out["text"]),
        "minutes": settings.minutes, "seed": settings.seed, "own_data_only": settings.own_data_only,
    }  # fmt: skip
    if path.is_file():
        plan = json.loads(path.read_text())
        differs = [name for name, value in asked.items() if plan["asked"].get(name) != value]
        if differs:
            raise ArtifactError(f"holds a tour with another {differs[0]}", str(out), "name another --out")
        return plan
    present.say("plan: measuring this machine for a few seconds")
    plan = make_plan(base(settings), corpus.train, corpus.held_out, settings.minutes, settings.seed) | {"asked": asked}
    write_atomic(path, json.dumps(plan, indent=2) + "\n")
    return plan


def _evaluate(settings: TourSettings, corpus: Corpus, plan: dict[str, Any], adapted: Path, artifact: Artifact) -> None:
    """Both models on the same documents and questions; what each item scored is kept for the intervals."""
    held = corpus.held_out.select(range(plan["documents"]))["text"]
    own_base = settings.model is None
    asked = [] if settings.own_data_only else questions(plan["questions"], own_base)
    results: dict[str, dict[str, Any]] = {}
    with track("evaluate", 2, "models") as step:
        for name, lm in (("before", base(settings)), ("after", None)):
            model = lm or load(adapted)
            length = length_of(model)
            found: dict[str, Any] = {"corpus": _kept(perplexity(model, held, max_length=length))}
            if own_base:
                found["general"] = _kept(perplexity(model, _village(model), max_length=length))
            if asked:
                marks = ask(model, asked)
                found["right"], found["replies"] = marks.right, list(marks.replies)
            results[name] = found
            step(1)
    document = {
        "groups": [q.group for q in asked],
        "prompts": [q.prompt for q in asked],
        "expected": [q.expected for q in asked],
        **results,
    }
    write_atomic(artifact.path / "items.json", json.dumps(document))
    artifact.finish(summary(document))


def _village(lm: LanguageModel) -> list[list[int]]:
    tokenizer: Any = lm.tokenizer
    pages = documents(World(0), tokenizer, "page", derive(0, "general"))
    return [next(pages)["ids"] for _ in range(GENERAL)]


def _kept(found: Perplexity) -> dict[str, Any]:
    return {"nll": found.nll.tolist(), "tokens": found.tokens.tolist()}


def summary(items: dict[str, Any]) -> dict[str, Any]:
    """The measures of evaluated items as plain numbers."""
    return {m.name: {"before": m.before, "after": m.after, "n": m.n, "verdict": m.verdict} for m in measures(items)}


def measures(items: dict[str, Any]) -> list[Measure]:
    """Perplexities and accuracies before and after, with intervals over documents or questions."""
    from maypole.core.statistics import paired_ratio

    made: list[Measure] = []
    for key, name in (("corpus", "corpus perplexity"), ("general", "village perplexity")):
        if key not in items["before"]:
            continue
        before, after = items["before"][key], items["after"][key]
        nll = [np.asarray(x["nll"]) for x in (before, after)]
        tokens = np.asarray(before["tokens"])
        values = [float(np.exp(x.sum() / tokens.sum())) for x in nll]
        interval = paired_ratio(nll[1], nll[0], tokens, transform="exp")
        made.append(
            Measure(name=name, before=values[0], after=values[1], interval=interval, n=len(tokens), better="lower")
        )
    groups = (("new tasks", NEW), ("old tasks", KEPT))
    for name, tasks in groups:
        wanted = {f"task/{task}" for task in tasks}
        _accuracy(made, items, name, [i for i, g in enumerate(items["groups"]) if g in wanted])
    _accuracy(made, items, "facts recalled", [i for i, g in enumerate(items["groups"]) if not g.startswith("task/")])
    return made


def _accuracy(made: list[Measure], items: dict[str, Any], name: str, chosen: list[int]) -> None:
    if not chosen:
        return
    before, after = ([items[k]["right"][i] for i in chosen] for k in ("before", "after"))
    interval = paired_bootstrap(after, before)
    made.append(
        Measure(
            name=name,
            before=float(np.mean(before)),
            after=float(np.mean(after)),
            interval=interval,
            n=len(chosen),
            better="higher",
        )  # fmt: skip
    )


def _write(shown: present.Progress, out: Path, begin: float, state: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    date = datetime.now(UTC).date().isoformat()
    write(shown.report(state, date, time.monotonic() - begin, peak), out / "report.html")
