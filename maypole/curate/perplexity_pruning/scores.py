"""What a reference model said of every document: one Parquet file per shard of the corpus, with its origin inside.

Columns: id, shard, row (from 0), n_tokens (scored), nll (nats per token, fp32), domain. Thresholds are drawn from these
files alone, so another selection never touches the model. Knows nothing about criteria.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError, DataError, UserError

KIND = "scores"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("n_tokens", pa.int32()),
        ("nll", pa.float32()),
        ("domain", pa.dictionary(pa.int32(), pa.string())),
    ]
)
ROWS_A_GROUP = 1 << 16
_METADATA = b"maypole"


@dataclass(frozen=True, slots=True)
class Reading:
    """How documents are read: windows of `max_length` tokens (None: the model's context), of each document the first
    `max_tokens` (None: all)."""

    max_length: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(name, value, "2 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the scores of one shard come from.

    `model` is the reference's fingerprint; `max_length` its window, `max_tokens` the part of a document that was read
    (None: all of it). `source` is the identity of the shard called `name`, which has `rows` rows, `dropped` of which
    (reason -> how many) have no score; `cut` were longer than a window.
    """

    model: str | None
    max_length: int
    max_tokens: int | None
    name: str
    source: str
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """One document's score: its nll summed over `n_tokens`."""

    id: str
    row: int
    n_tokens: int
    nll: float
    domain: str


class ScoreWriter:
    """The score file of one shard, written group by group; `finish` says where it comes from and makes it whole."""

    def __init__(self, path: Path, shard: int) -> None:
        self._shard = shard
        self._file = pq.ParquetWriter(path, SCHEMA)
        self._waiting: list[Scored] = []

    def __enter__(self) -> "ScoreWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, scored: Sequence[Scored]) -> None:
        self._waiting += scored
        while len(self._waiting) >= ROWS_A_GROUP:
            self._flush(ROWS_A_GROUP)

    def finish(self, origin: Origin) -> None:
        self._flush(len(self._waiting))
        self._file.add_key_value_metadata({_METADATA.decode(): json.dumps(asdict(origin), sort_keys=True)})
        self._file.close()

    def _flush(self, count: int) -> None:
        rows, self._waiting = self._waiting[:count], self._waiting[count:]
        tokens = np.array([row.n_tokens for row in rows], dtype=np.int32)
        nll = np.array([row.nll for row in rows], dtype=np.float64) / tokens
        columns = [
            pa.array([row.id for row in rows], pa.string()),
            pa.array(np.full(len(rows), self._shard), pa.int32()),
            pa.array([row.row for row in rows], pa.int64()),
            pa.array(tokens),
            pa.array(nll.astype(np.float32)),
            pa.array([row.domain for row in rows], pa.string()).dictionary_encode(),
        ]
        self._file.write_table(pa.table(columns, schema=SCHEMA))


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the score file of shard `shard`, (n,) each; columns that were not asked for are None."""

    shard: int
    n_tokens: NDArray[np.int32]
    nll: NDArray[np.float32]
    row: NDArray[np.int64]
    ids: pa.Array | None
    domains: pa.DictionaryArray | None

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) whether the score is a number; what has none is never kept."""
        return np.isfinite(self.nll)


@dataclass(frozen=True, slots=True)
class Scores:
    """The score files of a corpus, in the order of its shards."""

    paths: tuple[Path, ...]
    origins: tuple[Origin, ...]

    @classmethod
    def open(cls, path: str | Path) -> "Scores":
        """Those in a directory that `score` wrote; UserError where they do not belong together."""
        artifact = Artifact.load(path)
        if artifact.manifest["kind"] != KIND:
            raise UserError(f"holds {artifact.manifest['kind']!r}, not scores", str(path), "what curate score wrote")
        paths = tuple(sorted(artifact.path.glob("*.parquet")))
        origins = tuple(_origin(path) for path in paths)
        for file, origin in zip(paths, origins):
            if (origin.model, origin.max_length, origin.max_tokens) != (
                origins[0].model, origins[0].max_length, origins[0].max_tokens,
            ):  # fmt: skip
                what = f"its scores are of another model or context than those in {paths[0].name}"
                raise UserError(what, str(file), "scores of one checkpoint; score the corpus anew")
        return cls(paths, origins)

    @property
    def rows(self) -> int:
        """Rows of the corpus, scored or not."""
        return sum(origin.rows for origin in self.origins)

    def parts(self, *, ids: bool = False, domains: bool = False, shard: int | None = None) -> Iterator[Part]:
        """All scores, or those of one shard, a group of rows at a time and always in the same order."""
        read = ["n_tokens", "nll", "row", *(["id"] if ids else []), *(["domain"] if domains else [])]
        for index, path in enumerate(self.paths) if shard is None else [(shard, self.paths[shard])]:
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(batch_size=ROWS_A_GROUP, columns=read):
                    column = dict(zip(batch.schema.names, batch.columns))
                    yield Part(
                        index, column["n_tokens"].to_numpy(), column["nll"].to_numpy(), column["row"].to_numpy(),
                        column.get("id"), column.get("domain"),
                    )  # fmt: skip


def file_name(shard: int) -> str:
    """The score file of a shard."""
    return f"{shard:05}.parquet"


def _origin(path: Path) -> Origin:
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return Origin(**json.loads(metadata[_METADATA]))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError("no readable score file", file=path, expected="a file that curate score wrote") from error
