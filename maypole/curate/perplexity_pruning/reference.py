"""A reference model trained on a share of the corpus itself, which then is not scored. Knows nothing about scores."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maypole.core.artifact import Artifact
from maypole.core.atomic import fsync_file
from maypole.core.errors import ConfigError, UserError
from maypole.core.progress import track
from maypole.core.seeds import derive
from maypole.curate.corpus import Corpus, documents, unusable
from maypole.curate.perplexity_pruning.selection import hashed
from maypole.curate.perplexity_pruning.split import FILE, Read
from maypole.data.reader import read as read_rows
from maypole.data.rows import TEXT
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.result import load_result, save_result
from maypole.train.supervised import LanguageModeling

NAME = "reference"


def train_reference(lm: LanguageModel, corpus: Corpus, read: Read, config: TrainConfig, *, out: Artifact) -> Artifact:
    """Train `lm` in place on the documents in the split of `read`; the checkpoint lies in `out` as "reference", and
    beside it the ids that it has read, those in `read.seen` among them (`split.remembered`).

    Where `out` is finished its checkpoint is loaded into `lm`. UserError where the split holds no document, ConfigError
    where rows would be longer than the model has positions for.
    """
    if config.max_length is not None and config.max_length > lm.max_length:
        raise ConfigError("train.max_length", config.max_length, f"at most the model's {lm.max_length} positions")
    if out.finished:
        child = Artifact.load(out.path / NAME)
        load_result(lm, child, config)
        return child
    path = out.checkpoints / "split.parquet"
    if not path.is_file():
        _write_split(corpus, read, path)
    rows = read_rows(path, TEXT)
    seed = derive(read.seed, NAME)
    with out.child(NAME, kind="pretrain", config=config, inputs={"model": lm, "rows": rows}, seed=seed) as child:
        fit(lm, rows, LanguageModeling(), config, out=child, seed=seed)
        if not child.finished:
            save_result(lm, child, child.manifest["metrics"])
            np.save(child.path / FILE, np.union1d(read.seen, _ids(corpus, read)))
            child.finish()
    return child


def _write_split(corpus: Corpus, read: Read, path: Path) -> None:
    """The texts that the reference learns from, in the order of the corpus, but for those that nobody can read."""
    part = path.with_name(f".{path.name}.tmp")
    count = 0
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(part, schema) as file, track("reference: split", len(corpus.shards), "shards") as step:
        for shard in corpus.shards:
            for batch in documents(shard, corpus.columns):
                chosen = read.in_split([document.id for document in batch])
                texts = [d.text for d, taken in zip(batch, chosen) if taken and unusable(d.text) is None]
                count += len(texts)
                if texts:
                    file.write_batch(pa.record_batch([pa.array(texts, pa.string())], schema=schema))
            step(1)
    if not count:
        part.unlink()
        raise UserError(f"a share of {read.share:g} holds no document", "--train-reference", "a larger share")
    fsync_file(part)
    os.replace(part, path)


def _ids(corpus: Corpus, read: Read) -> NDArray[np.uint64]:
    """Hashes of the ids in the split of `read`."""
    found: list[NDArray[np.uint64]] = []
    for shard in corpus.shards:
        for batch in documents(shard, corpus.columns):
            ids = [document.id for document in batch]
            found.append(hashed(ids)[read.in_split(ids)])
    return np.concatenate(found)
