"""Rows become token ids once, kept in flat memory-mapped arrays: an epoch costs no tokenising and little memory.

Knows nothing about batches, models or losses.
"""

import inspect
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

from maypole.core.atomic import fsync_tree
from maypole.core.errors import DataError, UserError
from maypole.core.identity import cache_dir, digest, identity
from maypole.core.progress import track
from maypole.data import chat, pair_question
from maypole.data.chat import PROMPT_FILLS, Dropped
from maypole.train import answers
from maypole.train.objective import ALSO, Objective, Segment

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
_FORMAT = "3"  # raised when the same rows would give other arrays
NOTHING_SCORED = "no token to learn"
ALIKE = "answers are alike once cut"
TOO_LONG = "longer than max_length"


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all kept rows, segments in pre-order.

    ids, weights: (T,); segment_start: (S + 1,) into tokens; segment_parent: (S,) index within the row, -1 for roots;
    segment_name: (S,) into `names`; row_start: (R + 1,) into segments; row_index: (R,) the dataset row it came from.
    dropped: rows by reason; cut: answers of kept rows that lost their end to max_length, by name.
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
    cut: dict[str, int]
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

    def digest(self) -> str:
        """What decides any model's log-probs of the scored tokens: the tokens and who sees whom."""
        arrays = (self.ids, self.weights != 0, self.segment_start, self.segment_parent, self.row_start)
        return digest(*(np.ascontiguousarray(array).tobytes() for array in arrays))

    def weight_of(self, rows: np.ndarray) -> float:
        """Summed absolute weights of the scored tokens of `rows`."""
        return float(sum(np.abs(self.weights[a:b], dtype=np.float64).sum() for a, b in map(self.bounds, rows)))


def tokenize(rows: Dataset, objective: Objective, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenStore:
    """All rows of `objective` as tokens, from the cache where the same was done before.

    DataError names the row that is not of the objective's row type or cannot be encoded.
    """
    key = _key(rows, objective, tokenizer, max_length)
    if key is None:
        folder = Path(tempfile.mkdtemp(prefix="maypole-tokens-"))
        try:
            _write(rows, objective, tokenizer, max_length, folder)
            return _open(folder)
        finally:
            shutil.rmtree(folder)  # the maps stay readable until they are closed
    target = cache_dir("tokens") / key
    if not (target / "store.json").is_file():
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(rows, objective, tokenizer, max_length, part)
            fsync_tree(part)
            part.rename(target)
        except OSError:
            if not (target / "store.json").is_file():  # else another process made the same
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return _open(target)


def _key(rows: Dataset, objective: Objective, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str | None:
    """What decides the tokens: rows, objective and its code, tokenizer, length; None where one is unknown."""
    parts = [identity(rows), identity(objective), tokenizer_identity(tokenizer)]
    code = [_code(type(objective)), *map(_code, (chat, pair_question, answers))]
    known = [part for part in (*parts, *code) if part is not None]
    return digest(_FORMAT, str(max_length), *known) if len(known) == len(parts) + len(code) else None


def _code(thing: Any) -> str | None:
    try:
        file = inspect.getsourcefile(thing)
    except (TypeError, OSError):  # made in an interactive session
        return None
    return digest(Path(file).read_bytes()) if file and Path(file).is_file() else None


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a tokenizer does to text: its fast backend and its template; None for a slow one."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return digest(backend.to_str(), str(tokenizer.chat_template), repr(sorted(tokenizer.special_tokens_map.items())))


def _write(
    rows: Dataset, objective: Objective, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path
) -> None:
    dropped: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    names: dict[str, int] = {}
    totals = {"tokens": 0, "segments": 0, "unshared": 0}
    files = {name: (folder / name).open("wb") for name in _ARRAYS}
    wanted = {*objective.rows.columns, *objective.rows.optional, *objective.columns}
    columns = [c for c in rows.column_names if c in wanted]

    def emit(name: str, values: Any) -> None:
        files[name].write(np.asarray(values, dtype=_ARRAYS[name]).tobytes())

    try:
        emit("segment_start", [0])
        emit("row_start", [0])
        chosen = rows.select_columns(columns) if columns else rows
        with track("tokenize", len(rows), "rows") as step:
            for begin in range(0, len(chosen), _BATCH):
                batch: dict[str, list] = chosen[begin : begin + _BATCH]
                count = len(next(iter(batch.values())))
                for i in range(count):
                    row = {name: values[i] for name, values in batch.items()}
                    for tree in _trees(row, begin + i, objective, tokenizer, max_length, dropped, cut):
                        _emit_row(tree, begin + i, emit, names, totals)
                step(count)
    finally:
        for file in files.values():
            file.close()
    head = {"names": list(names), "dropped": dict(dropped), "cut": dict(cut), "unshared": totals["unshared"]}
    (folder / "store.json").write_text(json.dumps(head))


def _trees(
    row: Mapping[str, Any],
    number: int,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropped: Counter[str],
    cut: Counter[str],
) -> Iterator[Segment]:
    """What is computed for one row: nothing (counted), one tree, or the windows of a long text."""
    try:
        objective.rows.check(row)
        made = objective.segments(row, tokenizer)
    except DataError as error:
        raise DataError(error.what, row=number + 1, field=error.field, expected=error.expected) from error
    if isinstance(made, Dropped):
        dropped[made.reason] += 1
        return
    if objective.overlong == "drop" and _longest(made) > max_length:
        trees, reason = [], TOO_LONG
    elif objective.overlong == "split" and not made.children:
        trees = [window for window in _split(made, max_length) if _scored(window, first=True)]
        reason = NOTHING_SCORED
    else:
        tree = _cut(made, max_length)
        trees = [tree] if _scored(tree, first=True) and not _lost(made, tree, first=True) else []
        reason = PROMPT_FILLS if _scored(made, first=True) else NOTHING_SCORED
        if trees and _alike(tree) and not _alike(made):
            trees, reason = [], ALIKE
        if trees:
            cut.update(_shortened(made, tree))
    if not trees:
        dropped[reason] += 1
    yield from trees


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


def _longest(segment: Segment) -> int:
    """Tokens on the longest path from the root to a leaf."""
    return len(segment.ids) + max(map(_longest, segment.children), default=0)


def _scored(segment: Segment, first: bool) -> bool:
    """Whether a token with something before it has a weight."""
    weights = segment.weights[1:] if first else segment.weights
    return any(weights) or any(_scored(child, first and not segment.ids) for child in segment.children)


def _lost(whole: Segment, cut: Segment, first: bool) -> bool:
    """Whether an answer that could teach something cannot any more."""
    if not whole.children:
        return _scored(whole, first) and not _scored(cut, first)
    return any(_lost(a, b, first and not whole.ids) for a, b in zip(whole.children, cut.children))


def _shortened(whole: Segment, cut: Segment) -> Iterator[str]:
    """Names of the answers that have lost their end."""
    if not whole.children and len(cut.ids) < len(whole.ids):
        yield from (whole.name or "rows").split(ALSO)
    for a, b in zip(whole.children, cut.children):
        yield from _shortened(a, b)


def _alike(tree: Segment) -> bool:
    """Whether a tree's answers are one and the same."""
    return len(tree.children) > 1 and all(c.ids == tree.children[0].ids for c in tree.children[1:])


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
    counts = {name: head[name] for name in ("names", "dropped", "cut")}
    return TokenStore(**arrays, **counts, unshared_tokens=head["unshared"])
