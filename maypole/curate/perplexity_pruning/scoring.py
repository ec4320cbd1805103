"""Every document of a corpus scored by a small reference model, shard after shard, here or on many machines.

Documents go packed through the engine; one longer than the context is read in windows, each of which begins with BOS.
Knows nothing about which documents are kept.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.errors import ConfigError, UserError
from maypole.core.identity import identity
from maypole.core.progress import tell
from maypole.core.shards import map_shards
from maypole.curate.corpus import Corpus, Document, Shard, documents, unusable
from maypole.curate.perplexity_pruning.scores import KIND, Origin, Reading, Scored, ScoreWriter, file_name
from maypole.curate.perplexity_pruning.split import Read
from maypole.engine import Engine, EngineConfig
from maypole.evaluate.perplexity import context, document_nll
from maypole.models.language_model import LanguageModel

NOTHING_SCORED = "no token to score"
NOT_A_NUMBER = "score is not a number"
REPORT = "report.json"

Loader = Callable[[], LanguageModel]


@dataclass(frozen=True, slots=True)
class _Scorer:
    engine: Engine
    corpus: Corpus
    reading: Reading
    read: Read


def score(
    reference: LanguageModel | Loader,
    corpus: Corpus,
    *,
    out: str | Path | Artifact,
    reading: Reading | None = None,
    read: Read | None = None,
    tokens_per_batch: int | Literal["auto"] = "auto",
    workers: int = 1,
    ray: str | None = None,
) -> Artifact:
    """The scores of a corpus, as `Scores` reads them: per document nll in nats per token and how many tokens that were.

    Empty documents, such without a token to score and what is not valid Unicode are counted and not scored; a score
    that is not a number is stored as it is, counted, and never kept by a selection. UserError where nothing is scored.

    Parameters
    ----------
    reference
        The model; for several workers a function that loads it, since each holds its own. A function carries no
        identity: without an open artifact its result is made anew each time.
    out
        A path, or an open artifact, which is finished too.
    read
        What the reference was trained on; such documents are counted and not scored.
    """
    reading, read = reading or Reading(), read or Read()
    if isinstance(reference, LanguageModel) and (workers > 1 or ray is not None):
        raise UserError("several workers each load the model", "reference", "a function that loads it")
    if not isinstance(out, Artifact):
        inputs: dict[str, object] = {"model": reference, "corpus": corpus, "reading": reading, "read": _key(read)}
        with Artifact.open(out, kind=KIND, inputs=inputs) as artifact:
            return artifact if artifact.finished else score(
                reference, corpus, out=artifact, reading=reading, read=read, tokens_per_batch=tokens_per_batch,
                workers=workers, ray=ray,
            )  # fmt: skip
    load = (lambda: reference) if isinstance(reference, LanguageModel) else reference
    setup = partial(_open, load, corpus, reading, read, tokens_per_batch)
    shards = {file_name(shard.index): shard for shard in corpus.shards}
    found = map_shards(setup, _score_shard, shards, out=out, title="score", workers=workers, ray=ray)
    report = _report(corpus, found)
    if not report["scored"]:
        for name in shards:  # nothing is left that a better corpus would find in its way
            (out.path / name).unlink()
        shutil.rmtree(out.checkpoints)
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report["dropped"].items())
        raise UserError(f"none of {report['documents']:,} documents has a score ({reasons})", str(out.out))
    write_atomic(out.path / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return out.finish(report)


def _key(read: Read) -> tuple[Any, ...]:
    return read.share, read.seed, read.seen.tobytes()


def _open(
    load: Loader, corpus: Corpus, reading: Reading, read: Read, tokens_per_batch: int | Literal["auto"]
) -> _Scorer:
    engine = Engine(load(), EngineConfig(max_batch_tokens=tokens_per_batch))
    if reading.max_length is not None and reading.max_length > engine.max_length:
        raise ConfigError("max_length", reading.max_length, f"at most the model's {engine.max_length} positions")
    return _Scorer(engine, corpus, reading, read)


def _score_shard(scorer: _Scorer, shard: Shard, path: Path) -> dict[str, Any]:
    """Score one shard into the file `path`; returns what there was in it."""
    window = context(scorer.engine, scorer.reading.max_length)
    bos = scorer.engine.tokenizer.bos_token_id is not None
    dropped: Counter[str] = Counter()
    rows = tokens = cut = wrong = 0
    nll = 0.0
    with ScoreWriter(path, shard.index) as file:
        for batch in documents(shard, scorer.corpus.columns):
            kept = readable(batch, scorer.read, dropped)
            found = _nll(scorer, kept)
            scored = [Scored(d.id, d.row, count, total, d.domain) for d, (total, count) in zip(kept, found) if count]
            file.write(scored)
            dropped[NOTHING_SCORED] += len(kept) - len(scored)
            rows += len(batch)
            cut += sum(one.n_tokens + bos > window for one in scored)
            numbers = [one for one in scored if math.isfinite(one.nll)]
            wrong += len(scored) - len(numbers)
            tokens += sum(one.n_tokens for one in numbers)
            nll += sum(one.nll for one in numbers)
            tell(documents=rows, tokens=tokens)
        left_out = {reason: count for reason, count in dropped.items() if count}
        source = identity(shard.path)
        assert source is not None
        file.finish(
            Origin(
                model=scorer.engine.lm.fingerprint, max_length=window, max_tokens=scorer.reading.max_tokens,
                name=shard.name, source=source, rows=rows, dropped=left_out, cut=cut,
            )
        )  # fmt: skip
    scored = rows - sum(left_out.values())
    return {"rows": rows, "scored": scored, "tokens": tokens, "nll": nll, "cut": cut, "nan": wrong, "dropped": left_out}


def _nll(scorer: _Scorer, batch: Sequence[Document]) -> list[tuple[float, int]]:
    """(nll, tokens) of each document. One that overflows takes those along that are computed with it, for zero times
    infinity is not zero: such are computed again, alone."""
    reading = scorer.reading

    def nll(texts: Sequence[str]) -> list[tuple[float, int]]:
        return document_nll(scorer.engine, texts, max_length=reading.max_length, max_tokens=reading.max_tokens)

    found = nll([document.text for document in batch])
    return [one if math.isfinite(one[0]) else nll([d.text])[0] for d, one in zip(batch, found)]


def readable(batch: Sequence[Document], read: Read, dropped: Counter[str]) -> list[Document]:
    """The documents to score; why the others are not is counted."""
    kept: list[Document] = []
    for document, reason in zip(batch, read.reasons([document.id for document in batch])):
        reason = reason or unusable(document.text)
        if reason is None:
            kept.append(document)
        else:
            dropped[reason] += 1
    return kept


def _report(corpus: Corpus, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for one in found:
        dropped.update(one["dropped"])
    total = {name: sum(one[name] for one in found) for name in ("rows", "scored", "tokens", "cut", "nan", "nll")}
    return {
        "documents": total["rows"],
        "scored": total["scored"] - total["nan"],
        "tokens": total["tokens"],
        "nats_per_token": total["nll"] / max(total["tokens"], 1),
        "shards": len(found),
        "column_layouts": corpus.layouts,
        "longer_than_context": total["cut"],
        "dropped": {**dropped, **({NOT_A_NUMBER: total["nan"]} if total["nan"] else {})},
    }
