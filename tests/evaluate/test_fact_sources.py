"""Documents by BM25, beside rank_bm25; graphs that decide exactly; and sources that contradict each other."""

import math

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from maypole.core.errors import DataError
from maypole.core.identity import identity
from maypole.evaluate.fact_sources import Documents, KnowledgeGraph, pages, tokens
from maypole.evaluate.factuality import AtomicChecker
from maypole.village.draws import Draws
from maypole.village.phrases import statement
from maypole.village.world import ATTRIBUTES, Fact, World

CORPUS = [
    {"title": "Mara Fenn", "text": "Mara bakes bread in Elmford and sells bread on Monday."},
    {"title": "Tom Holt", "text": "Tom keeps bees near Elmford."},
    {"title": "Ilse Marsh", "text": ["Ilse plays the flute.", "She is a doctor in Foxley, and keeps a goat."]},
    {"title": "", "text": "It rained for seven days."},
    {"title": "The mill", "text": "Nobody has seen the miller since."},
]


@pytest.mark.parametrize("query", ["bread in Elmford", "who keeps a goat or bees", "Monday Monday", "MARA", "nothing?"])
def test_scores_are_those_of_rank_bm25_with_the_rarity_of_a_word_as_lucene_has_it(query: str):
    """Both add up rarity x frequency; rank_bm25's frequency has the factor k1 + 1 and its rarity may be negative."""
    documents = Documents(CORPUS)
    corpus = [tokens(passage) for passage in documents.passages]
    theirs = BM25Okapi(corpus, k1=1.5, b=0.75)
    expected = np.zeros(len(corpus))
    for word in tokens(query):
        if word in theirs.idf:
            n = sum(word in text for text in corpus)
            lucene = math.log(1 + (len(corpus) - n + 0.5) / (n + 0.5))
            expected += theirs.get_scores([word]) / theirs.idf[word] * lucene / 2.5
    np.testing.assert_allclose(documents.scores(query), expected, rtol=1e-5)


def test_passages_come_best_first_with_their_titles_and_none_without_a_word_of_the_query():
    documents = Documents(CORPUS)
    assert documents("bees", 3) == ["Tom Holt: Tom keeps bees near Elmford."]
    assert len(documents("Elmford", 5)) == 2
    assert documents("Ilse", 1)[0].startswith("Ilse Marsh: Ilse plays the flute. She is a doctor")
    assert documents("zebras?", 5) == []


def test_long_documents_are_cut_into_passages_that_all_have_the_title():
    words = [f"w{i}" for i in range(10)]
    documents = Documents([{"title": "T", "text": " ".join(words)}], words=4)
    assert documents.passages == ["T: w0 w1 w2 w3", "T: w4 w5 w6 w7", "T: w8 w9"]
    assert documents("w9", 5) == ["T: w8 w9"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"title": "T", "text": None}], 'row 1, field "text"'),
        ([{"title": "T", "text": "t"}, {"title": 7, "text": "t"}], 'row 2, field "title"'),
        ([{"title": "T", "text": "  "}], "no documents with a text"),
        ([], "no documents with a text"),
    ],
)
def test_rows_that_are_no_documents_are_refused(rows: list, says: str):
    with pytest.raises(DataError, match=says):
        Documents(rows)


def contained(facts: list[str], evidence: list[list[str]]) -> list[bool]:
    return [any(fact in passage for passage in passages) for fact, passages in zip(facts, evidence)]


def test_a_search_by_title_sees_its_own_page_alone():
    checker = AtomicChecker(lambda t, x: [[text] for text in x], contained, pages(CORPUS))
    reports = checker.check(["Mara Fenn", "Tom Holt"], ["Tom keeps bees", "Tom keeps bees"])
    assert [report.precision for report in reports] == [0.0, 1.0]
    with pytest.raises(DataError, match="'Bram'"):
        checker.check(["Bram"], ["Bram sings"])


def test_documents_are_known_by_their_passages():
    assert identity(Documents(CORPUS)) == identity(Documents(CORPUS))
    assert identity(Documents(CORPUS)) != identity(Documents(CORPUS[1:]))


def test_a_graph_agrees_with_the_truth_about_every_sentence_of_the_village():
    world, draws = World(3, families=4, tail=0, strangers=0), Draws(3, "sentences")
    facts = [fact for person in world.people for fact in world.facts_of[person.name] if fact.relation in ATTRIBUTES]
    others = [Fact(f.subject, f.relation, draws.pick_other([g.object for g in facts], f.object)) for f in facts]
    said = {statement(fact, 0, 0): fact for fact in [*facts, *others]}
    graph = KnowledgeGraph(facts, said.get)
    verdicts = dict(zip(said, graph.verify(list(said))))
    assert all(verdicts[text] == ("supported" if fact in facts else "contradicted") for text, fact in said.items())
    assert graph.verify(["The job of nobody is sitting.", "well-formed it is not"]) == ["unknown", "unknown"]


def test_what_is_malformed_is_unsupported_and_counted():
    graph = KnowledgeGraph([("Mara", "job", "baker")], {"Mara bakes": ("Mara", "job", "baker")}.get)
    checker = AtomicChecker(lambda t, x: [text.split(".") for text in x], graph.verify, graph.subjects)
    (found,) = checker.check(["Mara"], ["Mara bakes. Mara bla bla."])
    assert (found.correct, found.errors, found.precision) == (1, 1, 0.5)
    assert found.atoms[0].evidence == ("Mara | job | baker",)


def test_a_graph_that_contradicts_itself_supports_neither_unless_a_relation_may_have_several_objects():
    said = [("job", v) for v in ("baker", "miller", "cook")] + [("friend", v) for v in ("Tom", "Ilse", "Bram")]
    triples = [("Mara", *pair) for pair in said if pair[1] not in ("cook", "Bram")]
    named = {f"Mara {r} {o}": ("Mara", r, o) for r, o in said}
    graph = KnowledgeGraph(triples, named.get, many=["friend"])
    facts = ["Mara job baker", "Mara job miller", "Mara job cook", "Mara friend Tom", "Mara friend Bram"]
    assert graph.verify(facts) == ["disputed", "disputed", "contradicted", "supported", "unknown"]
