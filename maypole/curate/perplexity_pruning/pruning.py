"""A corpus without what a selection leaves out: the same files with fewer rows, and what became of each domain.

No model is needed, only its scores. Knows nothing about how rows were selected.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.errors import UserError
from maypole.core.identity import identity
from maypole.core.shards import map_shards
from maypole.curate.corpus import Corpus, Shard, documents, rewrite
from maypole.curate.perplexity_pruning import picture, report
from maypole.curate.perplexity_pruning.report import Sample, Tally, Wanted
from maypole.curate.perplexity_pruning.scores import Scores
from maypole.curate.perplexity_pruning.selection import Criterion, Selection, select

KIND = "pruned"
DATA = "data"


@dataclass(frozen=True, slots=True)
class _Cut:
    corpus: Corpus
    scores: Scores
    selection: Selection
    wanted: Wanted


def prune(
    corpus: Corpus,
    scores: Scores,
    *,
    out: str | Path | Artifact,
    criterion: Criterion = "medium",
    rate: float = 0.5,
    by: Literal["document", "token"] = "document",
    stratify: Literal["length", "domain"] | None = None,
    seed: int = 0,
    workers: int = 1,
    ray: str | None = None,
) -> Artifact:
    """Write the documents of `corpus` that `select` chooses, file by file, with a report of what was kept.

    The files lie in ``data`` under their own names, in their own format, with all their columns; ``report.json`` has
    the composition per domain, the histogram of nll and samples. `out` is a path or an open artifact, which is
    finished too. UserError where the scores are not those of this corpus.
    """
    if not isinstance(out, Artifact):
        config = {"criterion": criterion, "rate": rate, "by": by, "stratify": stratify}
        inputs: dict[str, object] = {"corpus": corpus, "scores": scores}
        with Artifact.open(out, kind=KIND, config=config, inputs=inputs, seed=seed) as artifact:
            return artifact if artifact.finished else prune(
                corpus, scores, out=artifact, criterion=criterion, rate=rate, by=by, stratify=stratify, seed=seed,
                workers=workers, ray=ray,
            )  # fmt: skip
    check_scores(corpus, scores)
    selection = select(scores, criterion=criterion, rate=rate, by=by, stratify=stratify, seed=seed)
    cut = _Cut(corpus, scores, selection, report.wanted(scores))
    named = {f"{DATA}/{shard.name}": shard for shard in corpus.shards}
    found = map_shards(partial(_given, cut), _prune_shard, named, out=out, title="prune", workers=workers, ray=ray)
    document = report.report(corpus, scores, selection, cut.wanted, found)
    write_atomic(out.path / report.FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    write_atomic(out.path / picture.FILE, picture.picture(document))
    write_atomic(out.path / "README.md", report.card(document, out))
    return out.finish(report.metrics(document))


def check_scores(corpus: Corpus, scores: Scores) -> None:
    """UserError unless `scores` were made of just these files."""
    if len(scores.origins) != len(corpus.shards):
        what = f"there are scores of {len(scores.origins)} files, and the corpus has {len(corpus.shards)}"
        raise UserError(what, "--scores", "the scores of this corpus, or none: then they are made")
    for shard, origin in zip(corpus.shards, scores.origins):
        if (shard.name, identity(shard.path)) != (origin.name, origin.source):
            changed = "its content has changed" if shard.name == origin.name else f"they are of {origin.name}"
            raise UserError(f"the scores are not of this file: {changed}", str(shard.path), "score the corpus anew")


def _given(cut: _Cut) -> _Cut:
    return cut


def _prune_shard(cut: _Cut, shard: Shard, path: Path) -> dict[str, Any]:
    """Write what is kept of one shard to `path`; returns its tally and samples, as JSON holds them."""
    keep = np.zeros(cut.scores.origins[shard.index].rows, dtype=bool)
    tally = Tally.empty(cut.wanted)
    for part in cut.scores.parts(ids=True, domains=True, shard=shard.index):
        kept = cut.selection.keep(part)
        keep[part.row[kept]] = True
        tally.add(part, kept, cut.wanted)
    rewrite(shard, path, keep)
    return {"tally": tally.plain(), "samples": _samples(cut, shard, keep)}


def _samples(cut: _Cut, shard: Shard, keep: np.ndarray) -> list[dict[str, Any]]:
    mine: dict[int, list[Sample]] = {}
    for sample in cut.wanted.samples:
        if sample.shard == shard.index:
            mine.setdefault(sample.row, []).append(sample)
    found: list[dict[str, Any]] = []
    if not mine:
        return found
    for batch in documents(shard, cut.corpus.columns):
        for document in batch:
            for sample in mine.get(document.row, ()):
                found.append(sample.shown(document, bool(keep[document.row])))
        if batch[-1].row >= max(mine):
            break
    return found
