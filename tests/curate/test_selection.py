"""Selections against the definition, written out: sort everything, add up, compare."""

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maypole.core.errors import ConfigError, UserError
from maypole.curate.perplexity_pruning import Scores, ranks, select
from maypole.curate.perplexity_pruning.scores import ROWS_A_GROUP, SCHEMA, Scored, file_name
from maypole.curate.perplexity_pruning.selection import hashed, nll_of, percentiles, place_of
from tests.curate.curate_fixtures import score_files

ROOT = Path(__file__).parents[2]


def scored(count: int, *, ties: float = 0.3) -> list[Scored]:
    """Documents of which a share has one of three scores, some without a number."""
    rng = np.random.default_rng(5)
    nll = rng.lognormal(0.5, 0.6, count).astype(np.float32)
    tied = rng.random(count) < ties
    nll[tied] = rng.choice(np.float32([0.5, 2.0, 3.25]), tied.sum())
    nll[rng.random(count) < 0.02] = float("nan")
    nll[7] = float("inf")
    tokens = np.maximum(1, rng.lognormal(3, 1.2, count).astype(int))
    return [
        Scored(f"doc-{i}", i, int(n), float(x) * int(n), "abc"[i % 3]) for i, (n, x) in enumerate(zip(tokens, nll))
    ]


def sharded(rows: list[Scored], parts: int) -> list[list[Scored]]:
    """The same documents in so many files."""
    cuts = np.linspace(0, len(rows), parts + 1).astype(int)
    return [
        [Scored(d.id, i, d.n_tokens, d.nll, d.domain) for i, d in enumerate(rows[a:b])] for a, b in pairwise(cuts)
    ]


@pytest.fixture(params=[ranks.HELD, 3], ids=["one pass more", "bin after bin"])
def _held(request, monkeypatch):
    monkeypatch.setattr(ranks, "HELD", request.param)


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    return score_files(tmp_path / "scores", sharded(scored(1500), 4))


def everything(scores: Scores) -> list[tuple[float, int, int, int, str, str, int]]:
    """(nll, hash, shard, row, id, domain, tokens) of what has a score that is a number."""
    found = []
    for part in scores.parts(ids=True, domains=True):
        assert part.ids is not None
        assert part.domains is not None
        ids, domains = part.ids.to_pylist(), part.domains.to_pylist()
        columns = (part.nll.tolist(), hashed(ids).tolist(), part.row.tolist(), ids, domains, part.n_tokens.tolist())
        found += [(x, h, part.shard, r, i, d, n) for x, h, r, i, d, n in zip(*columns) if math.isfinite(x)]
    return found


def kept(scores: Scores, **options) -> set[str]:
    selection, found = select(scores, **options), set()
    for part in scores.parts(ids=True, domains=True):
        assert part.ids is not None
        found |= {name for name, keep in zip(part.ids.to_pylist(), selection.keep(part)) if keep}
    return found


def expected(scores: Scores, criterion: str, rate: float, by: str, stratify: str | None) -> set[str]:
    rows = everything(scores)
    stratum = {None: lambda d: "", "domain": lambda d: d[5], "length": lambda d: d[6].bit_length()}[stratify]
    found: set[str] = set()
    for name in {stratum(d) for d in rows}:
        mine = sorted(d for d in rows if stratum(d) == name)
        weight = [d[6] if by == "token" else 1 for d in mine]
        total, keep = sum(weight), round(rate * sum(weight))
        low = {"low": 0, "medium": (total - keep) // 2, "high": total - keep}[criterion]
        before = 0
        for document, own in zip(mine, weight):
            if low <= before < low + keep:
                found.add(document[4])
            before += own
    return found


@pytest.mark.usefixtures("_held")
@pytest.mark.parametrize("stratify", [None, "domain", "length"])
@pytest.mark.parametrize("by", ["document", "token"])
def test_what_is_kept_is_what_sorting_everything_keeps(scores, by, stratify):
    for criterion in ("low", "medium", "high"):
        for rate in (0.003, 0.25, 0.5, 0.71, 1.0):
            found = kept(scores, criterion=criterion, rate=rate, by=by, stratify=stratify)
            assert found == expected(scores, criterion, rate, by, stratify), (criterion, rate)


def test_by_token_keeps_the_rate_of_the_tokens_to_within_a_document(scores):
    rows = everything(scores)
    tokens = {d[4]: d[6] for d in rows}
    for criterion in ("low", "medium", "high", "random"):
        found = sum(tokens[name] for name in kept(scores, criterion=criterion, rate=0.4, by="token"))
        assert abs(found - 0.4 * sum(tokens.values())) <= max(tokens.values())


@pytest.mark.usefixtures("_held")
def test_percentiles_are_numpy_s_with_ties(scores):
    shares = np.linspace(0, 1, 41).tolist()
    rows = everything(scores)
    keys = percentiles(scores, shares)
    wanted = np.quantile([d[0] for d in rows], shares, method="inverted_cdf")
    assert [nll_of(key) for key in keys] == wanted.tolist()
    nll = {(d[2], d[3]): d[0] for d in rows}
    assert [nll[place_of(key)] for key in keys] == wanted.tolist()


def test_every_criterion_is_the_same_in_every_sharding(tmp_path):
    documents = scored(600)
    one, seven = (score_files(tmp_path / f"{n}", sharded(documents, n)) for n in (1, 7))
    for criterion in ("low", "medium", "high", "random"):
        for by in ("document", "token"):
            options = {"criterion": criterion, "rate": 0.37, "by": by, "seed": 3}
            assert kept(one, **options) == kept(seven, **options)


def test_a_change_of_scale_or_base_changes_nothing(tmp_path, scores):
    changed = [Scored(d.id, d.row, d.n_tokens, 4 * d.nll, d.domain) for d in scored(1500)]
    other = score_files(tmp_path / "four times", sharded(changed, 4))
    for criterion in ("low", "medium", "high"):
        assert kept(scores, criterion=criterion, rate=0.3) == kept(other, criterion=criterion, rate=0.3)


def test_random_selections_are_nested_exact_and_blind_to_the_score(tmp_path, scores):
    count = len(everything(scores))
    sets = [kept(scores, criterion="random", rate=rate, seed=9) for rate in (0.1, 0.4, 0.9)]
    assert sets[0] < sets[1] < sets[2]
    assert [len(found) for found in sets] == [round(rate * count) for rate in (0.1, 0.4, 0.9)]
    nll = {d[4]: d[0] for d in everything(scores)}
    assert np.mean([nll[name] for name in sets[1]]) == pytest.approx(np.mean(list(nll.values())), rel=0.1)


def test_too_many_domains_cannot_be_strata(tmp_path):
    rows = [Scored(f"{i}", i, 4, 8.0 + i, f"site {i}") for i in range(65)]
    many = score_files(tmp_path / "many", [rows])
    with pytest.raises(ConfigError, match="--stratify: 'domain' does not work"):
        select(many, rate=0.5, stratify="domain")
    assert len(kept(score_files(tmp_path / "fewer", [rows[:64]]), rate=1.0, stratify="domain")) == 64


def test_without_a_single_number_there_is_no_selection(tmp_path):
    rows = [Scored(f"{i}", i, 4, float("nan"), "") for i in range(3)]
    with pytest.raises(UserError, match="none of the documents has a score that is a number"):
        select(score_files(tmp_path / "none", [rows]), rate=0.5)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    rows, rng = 500_000, np.random.default_rng(0)
    for shard in range(4):
        nll = rng.lognormal(1, 0.4, rows).astype(np.float32)
        nll[: rows // 4] = nll[: rows // 4].round(2)  # ties by the thousand
        columns = [
            pa.array(np.arange(shard * rows, (shard + 1) * rows)).cast(pa.string()),
            pa.array(np.full(rows, shard, dtype=np.int32)),
            pa.array(np.arange(rows)),
            pa.array(np.full(rows, 100, dtype=np.int32)),
            pa.array(nll),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["web"])),
        ]
        pq.write_table(pa.table(columns, schema=SCHEMA), tmp_path / file_name(shard), row_group_size=ROWS_A_GROUP)

    def peak(times: int) -> int:
        words = [sys.executable, "-m", "tests.curate.many_scores", str(tmp_path), str(times)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        documents, kept, memory = map(int, ran.stdout.split())
        assert (documents, kept) == (2_000_000 * times, 1_000_000 * times)
        return memory

    assert peak(10) <= 1.1 * peak(1)
