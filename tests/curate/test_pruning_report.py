"""The report's numbers against the corpus, the scores and the files that were written."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from maypole.core.artifact import Artifact
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Scores, picture, prune, score
from maypole.curate.perplexity_pruning.report import MOST_DOMAINS, OTHER
from tests.curate.curate_fixtures import kept_ids, table, texts, written
from tests.engine.engine_fixtures import lm_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus` of 90 documents, one of them empty, and its `scores`."""
    folder = tmp_path_factory.mktemp("made")
    lm = lm_of()
    lm.fingerprint = "reference"
    corpus = open_corpus([written(folder / "corpus", [*texts(89), ""])])
    score(lm, corpus, out=folder / "scores")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


def pruned(made: Path, out: Path, **options) -> tuple[dict, Artifact]:
    done = prune(open_corpus([made / "corpus"]), Scores.open(made / "scores"), out=out, **options)
    return json.loads((done.path / "report.json").read_text()), done


def test_the_composition_reconciles_with_the_corpus_and_with_what_was_written(made, tmp_path):
    report, done = pruned(made, tmp_path / "out", criterion="medium", rate=0.4)
    scores = table(made / "scores")
    tokens = dict(zip(scores["id"], scores["n_tokens"]))
    domain = dict(zip(scores["id"], scores["domain"]))
    kept = kept_ids(done.path / "data")
    for line in report["composition"]:
        before, after = ([n for n in names if domain[n] == line["domain"]] for names in (tokens, kept))
        assert (line["documents"], line["kept_documents"]) == (len(before), len(after))
        assert line["tokens"] == sum(tokens[name] for name in before)
        assert line["kept_tokens"] == sum(tokens[name] for name in after)
    for field in ("documents", "tokens", "kept_documents", "kept_tokens"):
        assert sum(line[f"{field}_share"] for line in report["composition"]) == pytest.approx(1)
    assert report["documents"] == {"read": 90, "scored": 89, "kept": len(kept)}
    assert report["tokens"] == {"scored": sum(tokens.values()), "kept": sum(tokens[n] for n in kept)}
    assert report["dropped"] == {"empty": 1}
    assert done.manifest["metrics"]["kept_tokens"] == report["tokens"]["kept"]


def test_the_histogram_counts_every_document_once_and_the_band_holds_what_is_kept(made, tmp_path):
    report, done = pruned(made, tmp_path / "out", criterion="medium", rate=0.5)
    bins = report["histogram"]["domains"]
    assert sum(sum(d["documents"]) for d in bins.values()) == 89
    assert sum(sum(d["kept"]) for d in bins.values()) == report["documents"]["kept"] == 44
    assert all(k <= n for d in bins.values() for k, n in zip(d["kept"], d["documents"]))
    assert np.all(np.diff(report["histogram"]["edges"]) > 0)
    scores = table(made / "scores")
    nll = dict(zip(scores["id"], scores["nll"]))
    (band,) = report["bands"]
    kept = set(kept_ids(done.path / "data"))
    assert kept == {name for name, x in nll.items() if band["above"] < x <= band["up_to"]}


def test_samples_stand_at_numpy_s_percentiles_and_say_whether_they_were_kept(made, tmp_path):
    report, done = pruned(made, tmp_path / "out", criterion="high", rate=0.5)
    scores = table(made / "scores")
    wanted = np.quantile(np.float32(scores["nll"]), [0.01, 0.25, 0.5, 0.75, 0.99], method="inverted_cdf")
    assert list(report["percentiles"]) == ["1", "25", "50", "75", "99"]
    assert list(report["percentiles"].values()) == wanted.tolist()
    kept = set(kept_ids(done.path / "data"))
    documents = {f"d{i}": text for i, text in enumerate(texts(89))}
    assert [sample["percentile"] for sample in report["samples"]] == [1, 25, 50, 75, 99]
    for sample in report["samples"]:
        assert sample["text"] == documents[sample["id"]]
        assert sample["kept"] == (sample["id"] in kept)
    card = (done.path / "README.md").read_text()
    assert "44 of 89 documents" in card
    assert all(sample["text"] in card for sample in report["samples"])


def test_a_domain_above_the_median_is_gone_from_the_low_half(tmp_path):
    lm, rows = lm_of(), [{"id": f"p{i}", "text": text} for i, text in enumerate(texts(20))]

    def corpus_of(name: str):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return open_corpus([tmp_path / name])

    scores = table(score(lm, corpus_of("plain.jsonl"), out=tmp_path / "first").path)
    order = [name for _, name in sorted(zip(scores["nll"], scores["id"]))]
    for row in rows:
        row["domain"] = "hard" if order.index(row["id"]) >= 10 else "easy"
    corpus = corpus_of("named.jsonl")
    scored = Scores.open(score(lm, corpus, out=tmp_path / "scores").path)
    done = prune(corpus, scored, out=tmp_path / "low", criterion="low", rate=0.5)
    report = json.loads((done.path / "report.json").read_text())
    found = {line["domain"]: line["kept_documents_share"] for line in report["composition"]}
    assert found == {"easy": 1.0, "hard": 0.0}


def test_many_domains_share_a_line_and_hostile_text_stays_text(tmp_path):
    rows = [{"id": f"<b>{i}|`", "text": f"```\n<script>{i}</script>", "domain": f"<i>{i}|"} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_corpus([tmp_path / "a.jsonl"])
    done = prune(corpus, Scores.open(score(lm_of(), corpus, out=tmp_path / "s").path), out=tmp_path / "out")
    report = json.loads((done.path / "report.json").read_text())
    assert len(report["composition"]) == MOST_DOMAINS
    assert [line["documents"] for line in report["composition"] if line["domain"] == OTHER] == [11]
    card = (done.path / "README.md").read_text()
    assert "| &lt;i>0\\| |" in card
    fenced = card.split("## Samples")[1]
    assert fenced.count("````text") == 5


def test_the_picture_is_valid_quiet_and_the_same_twice(made, tmp_path, recwarn):
    report, done = pruned(made, tmp_path / "out", criterion="medium", rate=0.5)
    svg = (done.path / "nll.svg").read_text()
    assert svg == picture.picture(report)
    shown = "".join(ElementTree.fromstring(svg).itertext())
    assert all(word in shown for word in ("kept", "all", "wiki", "news", "nats per token"))
    assert "](nll.svg)" in (done.path / "README.md").read_text()
    wiki = report["histogram"]["domains"]["wiki"]
    for name in ("_hidden", "\x07bell", "<b>&$x^2$", "東京", "x" * 99, ""):
        report["histogram"]["domains"] = {"wiki": wiki, name: wiki}
        shown = "".join(ElementTree.fromstring(picture.picture(report)).itertext())
        assert (name.strip("_\x07")[:29] or "(none)") in shown
    report["histogram"]["domains"] = {f"site {i}": wiki for i in range(9)}
    assert "6 others" in "".join(ElementTree.fromstring(picture.picture(report)).itertext())
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
