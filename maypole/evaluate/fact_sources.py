"""What is known: documents found by BM25, and triples that decide by themselves. Knows nothing about answers.

`Documents` is a plain function (query, k) -> passages, as `AtomicChecker` takes any.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maypole.core.errors import DataError, MissingExtra
from maypole.core.identity import digest
from maypole.evaluate.fact_report import Verdict

WORDS = 180
"""Words of a passage; FActScore's have 256 tokens."""
_WORD = re.compile(r"\w+")


class Documents:
    """Passages of documents with `title` and `text`, the latter a string or a list of them, by BM25 (Lucene's).

    A document is cut into passages of at most `words` words; each begins with its title, which is searched too. A
    passage that has no word of the query is never found.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], words: int = WORDS) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtra("align", "searching documents") from error
        self.titles: list[str] = []
        self.passages: list[str] = []
        for number, row in enumerate(rows, start=1):
            title, text = _document(row, number)
            for piece in _pieces(text, words):
                self.titles.append(title)
                self.passages.append(f"{title}: {piece}" if title else piece)
        if not self.passages:
            raise DataError("no documents with a text", field="text", expected="rows with title and text")
        self.fingerprint = digest("documents", *self.passages)
        self._index = bm25s.BM25(method="lucene")
        self._index.index([tokens(passage) for passage in self.passages], show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """(passages,)"""
        known = [word for word in tokens(query) if word in self._index.vocab_dict]
        return self._index.get_scores(known) if known else np.zeros(len(self.passages), dtype=np.float32)

    def __call__(self, query: str, k: int) -> list[str]:
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self.passages[i] for i in best if scores[i] > 0]


def pages(rows: Iterable[Mapping[str, Any]], words: int = WORDS) -> dict[str, Documents]:
    """For each title a search in its own document alone, as FActScore's: what `AtomicChecker` takes by topic."""
    named: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, start=1):
        title, _ = _document(row, number)
        named.setdefault(title, []).append(row)
    return {title: Documents(of_one, words) for title, of_one in named.items()}


def tokens(text: str) -> list[str]:
    """The words of a text as they are searched, in any language that has spaces."""
    return _WORD.findall(text.casefold())


def _document(row: Mapping[str, Any], number: int) -> tuple[str, str]:
    title, text = row.get("title", ""), row.get("text")
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        text = "\n".join(text)
    for field, value in (("title", title), ("text", text)):
        if not isinstance(value, str):
            raise DataError(f"found {type(value).__name__}", row=number, field=field, expected="a string")
    return title, str(text)


def _pieces(text: str, words: int) -> Iterator[str]:
    every = text.split()
    for begin in range(0, len(every), words):
        yield " ".join(every[begin : begin + words])


Triple = tuple[str, str, str]


class KnowledgeGraph:
    """Triples (subject, relation, object) that decide exactly: `verify` and `retrieve` of an `AtomicChecker`.

    `parse` reads a fact as a triple, None where it is none: such a fact is unknown, so never supported. A fact is
    supported if its triple is there. If the graph has other objects for its subject and relation, then it contradicts
    the fact, or, where it has this one too, the fact is disputed; relations in `many` may have several objects.
    """

    def __init__(
        self, triples: Iterable[Triple], parse: Callable[[str], Triple | None], many: Sequence[str] = ()
    ) -> None:
        self.parse, self.many = parse, frozenset(many)
        self.objects: dict[tuple[str, str], set[str]] = {}
        self.facts: dict[str, list[str]] = {}
        for subject, relation, value in triples:
            self.objects.setdefault((subject, relation), set()).add(value)
            self.facts.setdefault(subject, []).append(f"{subject} | {relation} | {value}")

    def verify(self, facts: Sequence[str], evidence: Sequence[Sequence[str]] = ()) -> list[Verdict]:
        return [self.verdict(self.parse(fact)) for fact in facts]

    def verdict(self, triple: Triple | None) -> Verdict:
        if triple is None:
            return "unknown"
        subject, relation, value = triple
        known = self.objects.get((subject, relation), set())
        others = bool(known - {value}) and relation not in self.many
        if value in known:
            return "disputed" if others else "supported"
        return "contradicted" if others else "unknown"

    def about(self, subject: str) -> Callable[[str, int], list[str]]:
        """(query, k) -> the subject's triples, as many as asked for."""
        return lambda query, k: self.facts[subject][:k]

    @property
    def subjects(self) -> dict[str, Callable[[str, int], list[str]]]:
        """For each subject a search among its triples: `retrieve` for topics that must be subjects."""
        return {subject: self.about(subject) for subject in self.facts}
