"""The commands that choose training data: scores of a corpus, and the corpus pruned by them. Loads torch only when a
model is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, pass_on, required, setting
from maypole.core.errors import ConfigError
from maypole.core.ray_cluster import kept
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from maypole.curate.corpus import Corpus
    from maypole.curate.perplexity_pruning import Read
    from maypole.models.language_model import LanguageModel

SCORES = "scores"
"""What `score` makes; also where `prune` keeps the scores that it made, inside its result."""
PRUNED = "pruned"
_FILES = {
    SCORES: ("*.parquet", "report.json", "manifest.json", "config.yaml", "run.log"),
    PRUNED: ("data", "report.json", "README.md", "nll.svg", "manifest.json", "config.yaml", "run.log"),
}


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(ModelOptions, RunOptions):
    """Which corpus, and how a reference model reads it."""

    data: tuple[str, ...] = setting(input=True, help="files and folders: Parquet, or JSON lines plain, .gz or .zst")
    out: Path = setting(key=False, help="directory of the result")
    columns: tuple[str, ...] = setting((), help="what columns are called: text=body id=url domain=meta.source")
    max_length: int | None = setting(None, help="tokens read at once; default: the model's context")
    max_tokens: int | None = setting(None, help="read only so many tokens of a document")
    seen: tuple[str, ...] = setting((), input=True, help="what the reference was trained on: its ids get no score")
    tokens_per_batch: int | Literal["auto"] = setting("auto", key=False, help="tokens computed at a time")
    workers: int = setting(1, key=False, help="processes; each holds a copy of the model")
    ray: str | None = setting(None, key=False, help="run them on Ray: local, or the address of a cluster")

    def __post_init__(self) -> None:
        from maypole.curate.corpus import Columns
        from maypole.curate.perplexity_pruning.scores import Reading

        Columns.parse(self.columns)
        Reading(self.max_length, self.max_tokens)
        if self.workers < 1:
            raise ConfigError("workers", self.workers, "a whole number above 0")
        pass_on(CorpusOptions, self)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(CorpusOptions):
    """How a corpus is scored."""

    model: str = setting(input=True, help="the reference: model directory or hub id, small is enough")
    train_reference: float = setting(0.0, help="first train it on this share of the documents; they get no score")
    train: TrainConfig = setting(factory=TrainConfig, help="how that is done")

    def __post_init__(self) -> None:
        from maypole.curate.perplexity_pruning.split import Read

        Read(self.train_reference)
        if self.train != TrainConfig() and not self.train_reference:
            raise ConfigError("train_reference", self.train_reference, "a share above 0, where there are --train flags")
        pass_on(ScoreOptions, self)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(CorpusOptions):
    """Which documents are kept."""

    scores: Path | None = setting(None, input=True, help="what curate score wrote; none: made here, by --model")
    criterion: Literal["low", "medium", "high", "random"] = setting("medium", help="which perplexity is kept")
    rate: float = setting(0.5, help="how much is kept: above 0, at most 1")
    by: Literal["document", "token"] = setting("document", help="what --rate counts")
    stratify: Literal["length", "domain"] | None = setting(None, help="keep the rate within each of these")

    def __post_init__(self) -> None:
        from maypole.curate.perplexity_pruning.selection import check_choice

        check_choice(self.criterion, self.rate, self.by, self.stratify)
        for name in _ABOUT_SCORES if self.scores is not None else ():
            if getattr(self, name) != _DEFAULTS[name]:
                raise ConfigError(name, getattr(self, name), "nothing beside --scores: these are made already")
        pass_on(PruneOptions, self)


_ABOUT_SCORES = ("model", "adapter", "revision", "max_length", "max_tokens", "seen")
_DEFAULTS = {field.name: field.default for field in fields(CorpusOptions)}


def score(config: ScoreOptions) -> Artifact | DryRun:
    """Score every document of a corpus by how surprised a small reference model is.

    Each file of the corpus becomes one Parquet file with nats per token and length of every document. With
    --train-reference the model is first trained on a share of the corpus, which then is not scored. The same command
    continues an interrupted run.

        maypole curate score --model reference --data corpus/ --out scores
        maypole curate score --model new --train-reference 0.1 --train.learning-rate 1e-3 --data corpus/ --out scores
    """
    required(config, "model", "data")
    if config.dry_run:
        return _plan(config, SCORES, config)
    with Artifact.open(config.out, kind=SCORES, force=config.force, **_made_of(config)) as artifact:
        return artifact if artifact.finished else _score(config, _corpus(config, config.data), artifact)


def prune(config: PruneOptions) -> Artifact | DryRun:
    """Keep the documents of low, medium or high perplexity.

    The files keep their format, columns and order, and lie in data/ beside a report of what was kept. Without --scores
    the corpus is scored first; another criterion or rate takes the scores from there and needs no model.

        maypole curate prune --model reference --data corpus/ --criterion medium --rate 0.5 --out medium
        maypole curate prune --scores medium/scores --data corpus/ --criterion high --rate 0.25 --out high
    """
    required(config, "data")
    if config.scores is None:
        required(config, "model")
    scoring = _scoring(config) if config.scores is None else None
    if config.dry_run:
        return _plan(config, PRUNED, scoring)
    with Artifact.open(config.out, kind=PRUNED, force=config.force, **_made_of(config)) as artifact:
        if artifact.finished:
            return artifact
        from maypole.curate import perplexity_pruning

        corpus, scores = _corpus(config, config.data), config.scores
        with kept(config.ray, config.workers):
            if scoring is not None:
                with artifact.child(SCORES, kind=SCORES, **_made_of(scoring)) as child:
                    scores = (child if child.finished else _score(scoring, corpus, child)).path
            assert scores is not None
            return perplexity_pruning.prune(
                corpus, perplexity_pruning.Scores.open(scores), out=artifact, criterion=config.criterion,
                rate=config.rate, by=config.by, stratify=config.stratify, seed=config.seed, workers=config.workers,
                ray=config.ray,
            )  # fmt: skip


def _scoring(config: PruneOptions) -> ScoreOptions:
    """The command that would make the scores alone."""
    required(config, "model")
    return ScoreOptions(**{field.name: getattr(config, field.name) for field in fields(CorpusOptions)})


def _made_of(config: CorpusOptions) -> dict[str, Any]:
    """What says which result this is."""
    from maypole.models.hub import commits

    return {"config": config, "inputs": commits(config), "seed": config.seed}


def _corpus(config: CorpusOptions, sources: Sequence[str]) -> "Corpus":
    from maypole.curate.corpus import Columns, open_corpus

    return open_corpus(sources, Columns.parse(config.columns))


def _score(config: ScoreOptions, corpus: "Corpus", artifact: Artifact) -> Artifact:
    from maypole.curate import perplexity_pruning

    read = _read(config, corpus)
    reference = _loader(config, config.model)
    if config.train_reference:
        lm = _untrained(config)
        trained = perplexity_pruning.train_reference(lm, corpus, read, config.train, out=artifact)
        reference = _loader(config, str(trained.path), adapter=None, revision=None)
    return perplexity_pruning.score(
        reference, corpus, out=artifact, reading=perplexity_pruning.Reading(config.max_length, config.max_tokens),
        read=read, tokens_per_batch=config.tokens_per_batch, workers=config.workers, ray=config.ray,
    )  # fmt: skip


def _read(config: ScoreOptions, corpus: "Corpus") -> "Read":
    """What the reference has read: its share of the corpus, the files of --seen, and what lies beside its weights."""
    import numpy as np

    from maypole.curate.perplexity_pruning.split import Read, check_ids, ids_of, remembered

    seen = [remembered(name) for name in (config.model, config.adapter) if name is not None]
    if config.seen:
        check_ids(corpus)
        seen.append(ids_of(_corpus(config, config.seen)))
    return Read(config.train_reference, config.seed, np.unique(np.concatenate(seen)))


def _loader(config: CorpusOptions, model: str, **changes: object) -> "Callable[[], LanguageModel]":
    """What loads the reference, in this process or another."""
    from maypole.models.loading import load

    names = ("adapter", "device", "dtype", "quantization", "revision", "trust_remote_code")
    return partial(load, model, **{name: getattr(config, name) for name in names} | changes)


def _untrained(config: ScoreOptions) -> "LanguageModel":
    """The model to train, with fresh weights where its directory holds none."""
    from maypole.models.loading import create_from, has_weights

    path = Path(config.model)
    if (path / "config.json").is_file() and not has_weights(path):
        return create_from(path, config.seed, device=config.device, dtype=config.dtype)
    return _loader(config, config.model)()


def _plan(config: CorpusOptions, kind: str, scoring: ScoreOptions | None) -> DryRun:
    """What `config` would do; `scoring` is how scores would be made, None where there are some."""
    found = Artifact.find(config.out, kind=kind, force=config.force, **_made_of(config))
    begun = () if found is None else (str(found.path),)
    if found is not None and found.finished:
        return DryRun(reuses=begun)
    corpus = _corpus(config, config.data)
    if scoring is None:
        assert isinstance(config, PruneOptions)
        return _choice(config, corpus, begun)
    from maypole.curate.perplexity_pruning import Reading
    from maypole.curate.perplexity_pruning.dry_run import dry_run

    lm = _untrained(scoring) if scoring.train_reference else _loader(config, scoring.model)()
    reading, read = Reading(config.max_length, config.max_tokens), _read(scoring, corpus)
    plan = dry_run(
        lm, corpus, reading=reading, read=read, train=scoring.train, tokens_per_batch=config.tokens_per_batch,
        seed=config.seed,
    )  # fmt: skip
    return replace(plan, reuses=begun, files=_FILES[kind])


def _choice(config: PruneOptions, corpus: "Corpus", begun: tuple[str, ...]) -> DryRun:
    """What would be kept: the scores tell it, no model is needed."""
    from maypole.curate.perplexity_pruning import Scores, select
    from maypole.curate.perplexity_pruning.pruning import check_scores
    from maypole.curate.perplexity_pruning.report import without_score

    assert config.scores is not None
    scores = Scores.open(config.scores)
    check_scores(corpus, scores)
    selection = select(
        scores, criterion=config.criterion, rate=config.rate, by=config.by, stratify=config.stratify, seed=config.seed
    )
    kept = usable = 0
    for part in scores.parts(ids=True, domains=True):
        usable += int(part.usable.sum())
        kept += int(selection.keep(part).sum())
    dropped = {**without_score(scores, usable), "not selected": usable - kept}
    return DryRun(rows_kept=kept, rows_dropped=dropped, reuses=(str(config.scores), *begun), files=_FILES[PRUNED])
