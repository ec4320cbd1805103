"""A corpus of three files in three formats, and what a result holds."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from maypole.curate.perplexity_pruning import Scores
from maypole.curate.perplexity_pruning.scores import Origin, Scored, ScoreWriter, file_name

DOMAINS = ("wiki", "news")
SCORE = "score --model reference --data corpus --out o"


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 40))) for _ in range(count)]


def written(folder: Path, made: list[str]) -> Path:
    """Three shards of different formats, in order; each row has a column that nobody asked for."""
    folder.mkdir()
    rows = [{"id": f"d{i}", "text": t, "domain": DOMAINS[i % 2], "extra": i} for i, t in enumerate(made)]
    third = -(-len(rows) // 3)
    lines = ["".join(json.dumps(r) + "\n" for r in part) for part in (rows[:third], rows[third : 2 * third])]
    (folder / "a.jsonl").write_text(lines[0])
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(lines[1].encode()))
    pq.write_table(pa.Table.from_pylist(rows[2 * third :]), folder / "c.parquet")
    return folder


def kept_ids(folder: Path) -> list[str]:
    ids = [json.loads(line)["id"] for line in (folder / "a.jsonl").read_text().splitlines()]
    plain = zstandard.ZstdDecompressor().stream_reader((folder / "b.jsonl.zst").read_bytes()).read()
    ids += [json.loads(line)["id"] for line in plain.decode().splitlines()]
    return ids + pq.read_table(folder / "c.parquet")["id"].to_pylist()


def table(scores: Path) -> dict[str, list]:
    parts = [pq.read_table(file).to_pydict() for file in sorted(scores.glob("*.parquet"))]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a result but the records of how the run went."""
    records = {"manifest.json", "run.log", "config.yaml", "README.md", "metrics.jsonl"}
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in records]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def score_files(folder: Path, shards: list[list[Scored]]) -> Scores:
    """Scores of a corpus that nobody has to read for them."""
    folder.mkdir()
    origins = []
    for i, rows in enumerate(shards):
        origins.append(Origin(model="m", max_length=9, max_tokens=None, name=f"{i}", source="s", rows=len(rows)))
        with ScoreWriter(folder / file_name(i), i) as file:
            file.write(rows)
            file.finish(origins[-1])
    return Scores(tuple(folder / file_name(i) for i in range(len(shards))), tuple(origins))
