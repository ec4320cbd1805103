"""Rows that are made once, before any run: given pairs and pairs of a policy's answers with the golden judge's labels,
and the answers of the first policy that all others are measured against.

Everything is drawn in the same chunks with seeds of its own. Knows nothing about training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.drawing import draw
from maypole.align.judging import Judge, judged
from maypole.align.method import candidates
from maypole.align.online_offline_gap.config import GapConfig, Labels
from maypole.align.online_offline_gap.fresh import FreshPairs, first_wins
from maypole.core.errors import UserError
from maypole.core.judge import as_preference, call_preference, symmetric
from maypole.core.seeds import derive
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.judges import is_preference
from maypole.models.language_model import LanguageModel

CHUNK = 64
"""Prompts that are drawn together, always the same ones."""
ALIKE, TIED, NO_OPINION = "alike", "tied", "no opinion"
"""Why a pair is left out."""
_ANSWERS = ("chosen", "rejected")


def labelled(
    rows: Dataset, judge: Judge, config: GapConfig, labels: Labels, *, seed: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The pairs of `rows` as `judge` labels them, whatever their own labels, and how many were left out, by reason."""
    left_out: Counter[str] = Counter()
    pairs = [(number, dict(row)) for number, row in enumerate(rows)]
    kept = [(number, row) for number, row in pairs if row["chosen"] != row["rejected"]]
    left_out[ALIKE] = len(pairs) - len(kept)
    known: Any = judge
    asked = (symmetric(known) if config.both_orders else known) if is_preference(judge) else as_preference(known)
    probabilities = call_preference(
        asked,
        [row["prompt"] for _, row in kept],
        [row["chosen"] for _, row in kept],
        [row["rejected"] for _, row in kept],
        {name: [row[name] for _, row in kept] for name in further(rows)},
        on_judge_error=config.on_judge_error,
        rows=[number + 1 for number, _ in kept],
    ).array
    found: list[dict[str, Any]] = []
    for (number, row), p in zip(kept, probabilities.tolist()):
        wins = None if np.isnan(p) else first_wins(p, labels, seed, "pairs", number)
        if wins is None:
            left_out[NO_OPINION if np.isnan(p) else TIED] += 1
            continue
        chosen, rejected = _ANSWERS if wins else reversed(_ANSWERS)
        found.append({"prompt": row["prompt"], "chosen": row[chosen], "rejected": row[rejected]})
    return found, +left_out


def further(rows: Dataset) -> list[str]:
    """The columns that a judge may want to see beside prompt and answers."""
    return [name for name in rows.column_names if name not in ("prompt", *_ANSWERS)]


def answered(
    lm: LanguageModel, rows: Dataset, judge: Judge, method: FreshPairs, config: GapConfig, *, seed: int, ids: bool
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A pair of answers by `lm` to every prompt of `rows`, labelled by `judge`, and how many were left out.

    ids: the pairs keep the tokens that were sampled, for a policy that shares them.
    """
    assert candidates(method) == 2
    engine = Engine(lm)
    columns = further(rows)
    prompts = rows.select_columns(["prompt", *columns])
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for first in range(0, len(prompts), CHUNK):
        numbers = list(range(first, min(first + CHUNK, len(prompts))))
        engine.close()
        chunk = [dict(row) for row in prompts.select(numbers)]
        drawn = draw(engine, chunk, numbers, method, seed=seed, round=0, first=first)
        samples = judged(
            list(drawn), judge, method.judge, columns, both_orders=config.both_orders,
            on_judge_error=config.on_judge_error,
        )  # fmt: skip
        for sample in samples:
            pair = method.pair(sample) if sample["probabilities"] is not None else None
            if pair is not None:
                found.append({name: value for name, value in pair.items() if ids or not name.endswith("_ids")})
            else:
                alike = len({tuple(answer) for answer in sample["completion_ids"]}) == 1
                left_out[ALIKE if alike else NO_OPINION if sample["probabilities"] is None else TIED] += 1
    engine.close()
    return found, left_out


def replies(lm: LanguageModel, rows: Sequence[Mapping[str, Any]], max_tokens: int, *, seed: int) -> list[Any]:
    """One answer of `lm` to the prompt of every row, drawn at temperature 1 from all its tokens."""
    engine = Engine(lm)
    outputs: list[Any] = []
    for first in range(0, len(rows), CHUNK):
        engine.close()  # what it has read already must not decide who is computed with whom
        outputs += engine.generate(
            [
                Request(row["prompt"], Sampling(max_tokens=max_tokens, seed=derive(seed, "reply", first + i)))
                for i, row in enumerate(rows[first : first + CHUNK])
            ]
        )
    engine.close()
    return outputs


def write(path: Path, rows: Sequence[Mapping[str, Any]], what: str) -> None:
    if not rows:
        raise UserError("no pair is left that teaches anything", what, "pairs that differ, and a judge that tells why")
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
