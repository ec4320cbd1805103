import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Scores, prune, score, select
from maypole.curate.perplexity_pruning.selection import nll_of, percentiles
from maypole.data import TEXT, read
from tests.curate.curate_fixtures import kept_ids, table, texts, written
from tests.engine.engine_fixtures import lm_of


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm():
    made = lm_of()
    made.fingerprint = "reference"
    return made


def test_scores_are_the_loss_that_transformers_computes_of_one_document(lm, tmp_path):
    made = texts(12)
    corpus = open_corpus([written(tmp_path / "corpus", made)])
    found = table(score(lm, corpus, out=tmp_path / "scores").path)
    assert found["id"] == [f"d{i}" for i in range(12)]
    for text, nll, count in zip(made, found["nll"], found["n_tokens"]):
        ids = lm.tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            loss = lm.model(input_ids=ids, labels=ids).loss
        assert count == ids.shape[1] - 1
        assert nll == pytest.approx(float(loss), abs=1e-5)


def stored(tmp_path: Path, lm, count: int = 60) -> Scores:
    corpus = open_corpus([written(tmp_path / "corpus", texts(count))])
    return Scores.open(score(lm, corpus, out=tmp_path / "scores").path)


def chosen(scores: Scores, **options) -> set[str]:
    selection = select(scores, **options)
    found: set[str] = set()
    for part in scores.parts(ids=True, domains=True):
        keep = selection.keep(part)
        assert part.ids is not None
        found |= {name for name, kept in zip(part.ids.to_pylist(), keep) if kept}
    return found


def test_low_and_high_share_the_corpus_and_medium_lies_between_the_tails(lm, tmp_path):
    scores = stored(tmp_path, lm)
    every = {f"d{i}" for i in range(60)}
    assert chosen(scores, criterion="low", rate=0.3) | chosen(scores, criterion="high", rate=0.7) == every
    assert not chosen(scores, criterion="low", rate=0.3) & chosen(scores, criterion="high", rate=0.7)
    medium = chosen(scores, criterion="medium", rate=0.5)
    assert len(medium) == 30
    assert not medium & (chosen(scores, criterion="low", rate=0.25) | chosen(scores, criterion="high", rate=0.25))
    for criterion in ("low", "medium", "high", "random"):
        assert chosen(scores, criterion=criterion, rate=0.2) <= chosen(scores, criterion=criterion, rate=0.6)
        assert len(chosen(scores, criterion=criterion, rate=0.31)) == round(0.31 * 60)


def test_percentiles_are_numpy_s(lm, tmp_path):
    scores = stored(tmp_path, lm)
    shares = (0.01, 0.25, 0.5, 0.75, 0.99)
    nll = np.concatenate([part.nll for part in scores.parts()])
    expected = np.quantile(nll, shares, method="inverted_cdf")
    assert [nll_of(key) for key in percentiles(scores, shares)] == pytest.approx(expected.tolist(), abs=0)


def test_a_stratum_keeps_its_share(lm, tmp_path):
    scores = stored(tmp_path, lm)
    kept = chosen(scores, criterion="low", rate=0.5, stratify="domain")
    assert sum(int(name[1:]) % 2 for name in kept) == 15 == len(kept) - 15


def test_random_depends_on_the_seed_alone(lm, tmp_path):
    scores = stored(tmp_path, lm)
    first = chosen(scores, criterion="random", rate=0.5, seed=1)
    assert first == chosen(scores, criterion="random", rate=0.5, seed=1)
    assert first != chosen(scores, criterion="random", rate=0.5, seed=2)


def test_pruned_files_have_their_format_their_columns_and_their_order(lm, tmp_path):
    corpus = open_corpus([written(tmp_path / "corpus", texts(60))])
    scores = Scores.open(score(lm, corpus, out=tmp_path / "scores").path)
    done = prune(corpus, scores, out=tmp_path / "pruned", criterion="medium", rate=0.5)
    ids = kept_ids(done.path / "data")
    assert set(ids) == chosen(scores, criterion="medium", rate=0.5)
    assert ids == sorted(ids, key=lambda name: int(name[1:]))
    row = json.loads((done.path / "data" / "a.jsonl").read_text().splitlines()[0])
    assert row["extra"] == int(row["id"][1:])
    report = json.loads((done.path / "report.json").read_text())
    assert report
    assert sorted(read(done.path, TEXT)["id"]) == sorted(ids)  # the rows, and not the report beside them
    again = prune(corpus, scores, out=tmp_path / "high", criterion="high", rate=0.25)
    assert len(kept_ids(again.path / "data")) == 15


def test_a_gzipped_file_is_read_and_stays_one(lm, tmp_path):
    lines = [json.dumps({"id": f"d{i}", "text": text}).encode() for i, text in enumerate(texts(20))]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    corpus = open_corpus([tmp_path / "a.jsonl.gz"])
    scores = Scores.open(score(lm, corpus, out=tmp_path / "scores").path)
    done = prune(corpus, scores, out=tmp_path / "pruned", criterion="high", rate=0.5)
    kept = gzip.decompress((done.path / "data" / "a.jsonl.gz").read_bytes()).splitlines()
    wanted = chosen(scores, criterion="high", rate=0.5)
    assert kept == [line for line in lines if json.loads(line)["id"] in wanted]
    assert len(kept) == 10


def test_empty_documents_are_counted_and_not_scored(lm, tmp_path):
    corpus = open_corpus([written(tmp_path / "corpus", ["abc", "", "def", "ghi"])])
    done = score(lm, corpus, out=tmp_path / "scores")
    report = json.loads((done.path / "report.json").read_text())
    assert report["documents"] == 4
    assert report["scored"] == 3
    assert sum(report["dropped"].values()) == 1


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_a_rate_outside_its_range_is_an_error(lm, tmp_path, rate):
    with pytest.raises(ConfigError, match="rate"):
        select(stored(tmp_path, lm, 9), criterion="low", rate=rate)


def test_scores_of_another_corpus_are_refused(lm, tmp_path):
    scores = stored(tmp_path, lm, 9)
    other = open_corpus([written(tmp_path / "other", texts(10))])
    with pytest.raises(UserError, match="not of this file"):
        prune(other, scores, out=tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_column_that_one_shard_lacks_is_named(tmp_path):
    folder = written(tmp_path / "corpus", texts(9))
    (folder / "a.jsonl").write_text('{"id": "x", "body": "abc"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl"):
        open_corpus([folder])


def test_a_cut_file_is_named_and_nothing_is_left(lm, tmp_path):
    folder = written(tmp_path / "corpus", texts(60))
    whole = (folder / "b.jsonl.zst").read_bytes()
    (folder / "b.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.jsonl\.zst"):
        score(lm, open_corpus([folder]), out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
