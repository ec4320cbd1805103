"""Stage 1: what is mixed in, what is kept, what that did, and what the report says of it."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

from maypole.cli.main import run as command
from maypole.core.artifact import Artifact
from maypole.core.statistics import Interval
from maypole.curate.perplexity_pruning.report import FILE
from maypole.engine import Engine
from maypole.evaluate.perplexity import document_nll
from maypole.tour import TourOptions, curate_page, run
from maypole.tour.base import Base, reference
from maypole.tour.corpus import divided, load_corpus
from maypole.tour.curate import KEPT, Found, chosen
from maypole.tour.mixture import mixture
from maypole.tour.plan import CuratePlan
from tests.tour.conftest import RATES, sentences

TEXTS = [sentences(80, seed=i) for i in range(40)]
PLAN = CuratePlan(
    seconds=30, documents=50, noise=50, tokens_read=32, rate=0.5, trial_steps=30, trial_documents=9, examples_per_step=8
)
COMPOSITION = [
    {"domain": "notes", "documents": 50, "kept": 45, "tokens": 500, "kept_tokens": 450},
    {"domain": "noise", "documents": 50, "kept": 5, "tokens": 400, "kept_tokens": 40},
]
PRUNED = {"documents": {"scored": 100, "kept": 50}, "dropped": {"empty": 1}}


def test_noise_is_as_long_as_the_corpus_and_its_domains_are_those_of_the_village():
    corpus = divided("notes", TEXTS)
    rows = mixture(corpus, 30, 30, seed=4)
    assert rows == mixture(corpus, 30, 30, seed=4)
    assert [row["id"] for row in rows] == [str(i) for i in range(60)]
    noise = [row["text"] for row in rows if row["domain"] != "notes"]
    assert {row["domain"] for row in rows} == {"notes", "noise", "boilerplate"}
    assert len(noise) == 30
    own = [row["text"] for row in rows if row["domain"] == "notes"]
    assert set(own) <= set(corpus.train["text"])
    assert np.mean(list(map(len, noise))) == pytest.approx(np.mean(list(map(len, own))), rel=0.3)


def test_a_corpus_alone_stays_what_it_is():
    corpus = divided("notes", TEXTS)
    rows = mixture(corpus, len(corpus.train), 0, seed=0)
    assert sorted(row["text"] for row in rows) == sorted(corpus.train["text"])


def test_the_reference_reads_documentation_boilerplate_and_noise_apart():
    rows = mixture(load_corpus(None), 60, 60, seed=0)
    found = document_nll(Engine(reference()), [row["text"] for row in rows], max_tokens=32)
    nll: dict[str, list[float]] = {}
    for row, (total, tokens) in zip(rows, found):
        nll.setdefault(row["domain"], []).append(total / tokens)
    assert max(nll["boilerplate"]) < min(nll["Python's documentation"])
    assert np.quantile(nll["Python's documentation"], 0.9) < min(nll["noise"])


@pytest.mark.parametrize(
    ("change", "side"), [((-0.1, -0.05), "kept"), ((-0.1, 0.05), "kept"), ((0.0, 0.2), "kept"), ((0.01, 0.2), "all")]
)
def test_all_is_learnt_only_where_what_is_kept_taught_clearly_less(change, side):
    low, high = change
    assert Found(COMPOSITION, {"all": 4.0, "kept": 3.9}, Interval(low, high, (low + high) / 2)).goes_on == side


def test_the_change_is_that_of_the_same_documents_after_equal_steps():
    trial = {"all": [10.0, 20.0, 30.0], "kept": [9.0, 18.0, 27.0], "tokens": [5, 10, 15]}
    found = Found.made(COMPOSITION, trial)
    assert found.loss == {"all": 2.0, "kept": 1.8}
    assert (found.change.low, found.change.high) == pytest.approx((-0.2, -0.2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((-0.3, -0.1, -0.2), "−0.200 [−0.300, −0.100]: better, so the next stage learns from what is kept."),
        ((-0.1, 0.3, 0.1), "+0.100 [−0.100, +0.300]: no clear change; the next stage learns from what is kept."),
        ((0.1, 0.3, 0.2), "+0.200 [+0.100, +0.300]: worse, so the next stage learns from all."),
    ],
)
def test_the_finding_says_what_went_and_what_that_did(change, said):
    found = Found(COMPOSITION, {"all": 4.0, "kept": 3.8}, Interval(*change))
    told = curate_page._finding(PLAN, PRUNED, found)
    assert told.startswith("50 of 100 documents are kept: the middle 50 % by the surprise of village-4M-prose at the ")
    assert "mixed in to be found: 50 % of the documents are notes, 90 % of those kept." in told
    measured = "after 30 steps of 8 rows on either: 3.800 nats per token by what is kept, 4.000 by all, "
    assert told.endswith(measured + said)
    alone = curate_page._finding(dataclasses.replace(PLAN, noise=0, examples_per_step=1), PRUNED, found)
    assert "Nothing was mixed in." in alone
    assert "steps of 1 row on" in alone


def test_the_table_counts_domains_and_reasons():
    table = curate_page._table(PRUNED, Found(COMPOSITION, {"all": 4.0, "kept": 3.8}, Interval(-1, 1, 0)))
    assert table.rows == [
        ("notes", 50, 45, 500, 450),
        ("noise", 50, 5, 400, 40),
        ("all", 100, 50, 900, 490),
        ("left out: too little surprise", 25, None, None, None),
        ("left out: too much surprise", 25, None, None, None),
        ("left out: empty", 1, None, None, None),
    ]


def test_the_corpus_of_the_next_stage_is_what_was_kept(own):
    asked, report = own
    stage = Artifact.load(asked.out / "01-curate")
    corpus = load_corpus(asked.corpus)
    learnt = chosen(stage, corpus)
    found = Found.of(stage.path)
    assert set(learnt.train["text"]) <= set(corpus.train["text"])
    wanted = found.composition[0]["kept" if found.goes_on == "kept" else "documents"]
    assert len(learnt.train) == wanted
    assert learnt.held_out["text"] == corpus.held_out["text"]
    assert [line["domain"] for line in found.composition] == ["notes"]
    told = next(stage for stage in report.stages if stage.name == "curate")
    assert len(told.plots) == 1
    assert len(told.examples) == 5
    assert told.examples[0].label.startswith("percentile 1, ")
    assert told.examples[0].label.endswith(" nats per token, left out: notes")


def test_the_command_that_repeats_the_choice_keeps_the_same_documents(own, tmp_path, monkeypatch):
    asked, report = own
    line = shlex.split(next(stage.repeat_command for stage in report.stages if stage.name == "curate"))
    line[line.index("--out") + 1] = str(tmp_path / "again")
    assert command(line[1:]) == 0
    folders = asked.out / "01-curate" / KEPT, tmp_path / "again"
    first, again = (json.loads((folder / FILE).read_text()) for folder in folders)
    assert again["documents"] == first["documents"]
    assert again["samples"] == first["samples"]


def test_only_pythons_documentation_is_mixed_with_noise(monkeypatch, tmp_path, corpus):
    monkeypatch.setattr(run, "probe", lambda *args, **kwargs: RATES)
    base, texts = Base.of(None), divided("notes", TEXTS)
    asked = TourOptions(out=tmp_path)
    for mixed, options in (
        (True, asked),
        (False, dataclasses.replace(asked, corpus=corpus)),
        (False, dataclasses.replace(asked, own_data_only=True)),
    ):
        plan = run._decide(options, base, texts, begun=0.0)
        assert (plan.curate.noise > 0) == mixed
