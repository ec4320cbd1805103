"""Rows become token ids once, kept in flat memory-mapped arrays: an epoch costs no tokenising and little memory.

Knows nothing about batches, models or losses.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from maypole.core.errors import DataError, UserError
from maypole.core.identity import cache_dir, digest, identity
from maypole.core.progress import track
from maypole.data.chat import PROMPT_FILLS, Dropped
from maypole.train.objective import Objective, Segment

_ARRAYS = {
    "ids": np.int32,
    "weights": np.float32,
    "segment_start": np.int64,
    "segment_parent": np.int32,
    "segment_name": np.int16,
    "row_start": np.int64,
    "row_index": np.int64,
}
_BATCH = 1000


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all kept rows, segments in pre-order.

    ids, weights: (T,); segment_start: (S + 1,) into tokens; segment_parent: (S,) index within the row, -1 for roots;
    segment_name: (S,) into `names`; row_start: (R + 1,) into segments; row_index: (R,) the dataset row it came from.
    """

    ids: np.ndarray
    weights: np.ndarray
    segment_start: np.ndarray
    segment_parent: np.ndarray
    segment_name: np.ndarray
    row_start: np.ndarray
    row_index: np.ndarray
    names: list[str]
    dropped: dict[str, int]
    unshared_tokens: int

    def __len__(self) -> int:
        return len(self.row_index)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, shared ones once."""
        return int(self.segment_start[-1])

    def bounds(self, row: int) -> tuple[int, int]:
        """Where a row's tokens begin and end."""
        first, last = self.row_start[row], self.row_start[row + 1]
        return int(self.segment_start[first]), int(self.segment_start[last])

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens computed for each of `rows`, shared ones once."""
        return self.segment_start[self.row_start[rows + 1]] - self.segment_start[self.row_start[rows]]

    def weight_of(self, rows: np.ndarray) -> float:
        """Summed absolute weights of the scored tokens of `rows`."""
        return float(sum(np.abs(self.weights[a:b], dtype=np.float64).sum() for a, b in map(self.bounds, rows)))


def tokenize(
    rows: Dataset, objective: Objective, tokenizer: PreTrainedTokenizerBase, max_length: int, *, check: bool = False
) -> TokenStore:
    """All rows of `objective` as tokens, from the cache where the same was done before.

    With `check` the rows are checked against the objective's row type first (rows that `data.read` gave are already).
    DataError names the row that cannot be encoded.
    """
    parts = [identity(rows), identity(objective), tokenizer_identity(tokenizer)]
    if None in parts:
        return _write(
            rows, objective, tokenizer, max_length, check, Path(tempfile.mkdtemp(prefix="maypole-tokens-")), True
        )
    target = cache_dir("tokens") / digest(*[p for p in parts if p], str(max_length))
    if not (target / "store.json").is_file():
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(rows, objective, tokenizer, max_length, check, part, False)
            part.rename(target)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not (target / "store.json").is_file():  # else another process made the same
                raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return _open(target)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a tokenizer does to text: its fast backend and its template; None for a slow one."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return digest(backend.to_str(), str(tokenizer.chat_template), repr(sorted(tokenizer.special_tokens_map.items())))


def _write(
    rows: Dataset,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    check: bool,
    folder: Path,
    temporary: bool,
) -> TokenStore:
    dropped: Counter[str] = Counter()
    names: dict[str, int] = {}
    totals = {"tokens": 0, "segments": 0, "unshared": 0}
    files = {name: (folder / name).open("wb") for name in _ARRAYS}
    columns = [c for c in rows.column_names if c in objective.rows.columns or c in objective.columns] or None

    def emit(name: str, values: Any) -> None:
        files[name].write(np.asarray(values, dtype=_ARRAYS[name]).tobytes())

    try:
        emit("segment_start", [0])
        emit("row_start", [0])
        wanted = rows.select_columns(columns) if columns else rows
        with track("tokenize", len(rows), "rows") as step:
            for begin in range(0, len(wanted), _BATCH):
                batch: dict[str, list] = wanted[begin : begin + _BATCH]
                count = len(next(iter(batch.values())))
                for i in range(count):
                    row = {name: values[i] for name, values in batch.items()}
                    for tree in _trees(row, begin + i, objective, tokenizer, max_length, check, dropped):
                        _emit_row(tree, begin + i, emit, names, totals)
                step(count)
    finally:
        for file in files.values():
            file.close()
    head = {"names": list(names), "dropped": dict(dropped), "unshared": totals["unshared"]}
    (folder / "store.json").write_text(json.dumps(head))
    store = _open(folder)
    if temporary:
        shutil.rmtree(folder)  # the maps stay readable until they are closed
    return store


def _trees(
    row: Mapping[str, Any],
    number: int,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    check: bool,
    dropped: Counter[str],
) -> Iterator[Segment]:
    try:
        if check:
            objective.rows.check(row)
        made = objective.segments(row, tokenizer)
    except DataError as error:
        raise DataError(error.what, row=number + 1, field=error.field, expected=error.expected) from error
    if isinstance(made, Dropped):
        dropped[made.reason] += 1
        return
    if objective.overlong == "split" and not made.children:
        yield from _split(made, max_length)
        return
    tree = _cut(made, max_length)
    if not _scored(tree, first=True):
        dropped[PROMPT_FILLS if _scored(made, first=True) else "no token to learn"] += 1
        return
    yield tree


def _split(segment: Segment, max_length: int) -> Iterator[Segment]:
    """Windows of at most `max_length` tokens; each begins with the last token of the one before, unscored there."""
    n = len(segment.ids)
    for start in range(0, max(n - 1, 1), max_length - 1):
        end = min(start + max_length, n)
        yield Segment(segment.ids[start:end], segment.weights[start:end], segment.name)


def _cut(segment: Segment, room: int) -> Segment:
    """The tree with every path cut at `room` tokens."""
    if not segment.children:
        return Segment(segment.ids[:room], segment.weights[:room], segment.name)
    left = max(room - len(segment.ids), 0)
    children = tuple(_cut(child, left) for child in segment.children)
    return Segment(segment.ids[:room], segment.weights[:room], segment.name, children)


def _scored(segment: Segment, first: bool) -> bool:
    """Whether a token with something before it has a weight."""
    weights = segment.weights[1:] if first else segment.weights
    return any(weights) or any(_scored(child, first and not segment.ids) for child in segment.children)


def _emit_row(tree: Segment, number: int, emit: Any, names: dict[str, int], totals: dict[str, int]) -> None:
    flat: list[tuple[Segment, int, bool]] = []

    def walk(segment: Segment, parent: int, nothing_before: bool, before: int) -> None:
        me = len(flat)
        flat.append((segment, parent, nothing_before))
        if len(segment.ids) != len(segment.weights):
            raise UserError(
                f"a segment has {len(segment.ids)} ids and {len(segment.weights)} weights", f"row {number + 1}"
            )
        if not segment.children:
            totals["unshared"] += before + len(segment.ids)
        for child in segment.children:
            walk(child, me, nothing_before and not segment.ids, before + len(segment.ids))

    walk(tree, -1, True, 0)
    starts = []
    for segment, _, nothing_before in flat:
        weights = np.asarray(segment.weights, dtype=np.float32)
        if nothing_before and len(weights):
            weights[0] = 0.0
        emit("ids", segment.ids)
        emit("weights", weights)
        totals["tokens"] += len(segment.ids)
        starts.append(totals["tokens"])
    totals["segments"] += len(flat)
    emit("segment_start", starts)
    emit("segment_parent", [parent for _, parent, _ in flat])
    emit("segment_name", [names.setdefault(segment.name, len(names)) for segment, _, _ in flat])
    emit("row_start", [totals["segments"]])
    emit("row_index", [number])


def _open(folder: Path) -> TokenStore:
    head = json.loads((folder / "store.json").read_text())
    arrays: dict[str, Any] = {}
    for name, dtype in _ARRAYS.items():
        path = folder / name
        arrays[name] = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
    return TokenStore(**arrays, names=head["names"], dropped=head["dropped"], unshared_tokens=head["unshared"])
