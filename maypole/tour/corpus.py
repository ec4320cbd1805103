"""The texts a tour works on, and the tenth of them that no stage trains on. Knows nothing about models."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from maypole.core.errors import DataError
from maypole.core.identity import digest
from maypole.data.reader import read
from maypole.data.rows import TEXT
from maypole.tour.python_docs import MAX_CHARACTERS, python_docs, split_at_paragraphs

HELD_OUT = 10
"""One document in so many, by the hash of its text, is measured on and never trained on."""
LEAST = 20


@dataclass(frozen=True, slots=True)
class Corpus:
    """`train` and `held_out` have a column `text`; `name` as a reader would say it."""

    name: str
    train: Dataset
    held_out: Dataset
    characters: int

    @property
    def documents(self) -> int:
        return len(self.train) + len(self.held_out)


def load_corpus(path: Path | None) -> Corpus:
    """The documents below `path`, or the installed Python's own documentation.

    Long documents are cut at empty lines. DataError where there are too few to set some aside.
    """
    if path is None:
        return _divided("the documentation of the installed Python", (row["text"] for row in python_docs()))
    rows = read(str(path), TEXT)
    texts = (part for row in rows for part in split_at_paragraphs(row["text"], MAX_CHARACTERS))  # type: ignore[call-overload,index]
    corpus = _divided(path.name, texts)
    if corpus.documents < LEAST or not len(corpus.held_out):
        raise DataError(
            f"{corpus.documents} documents are too few to set some aside and learn from the rest",
            file=path, expected=f"at least {LEAST} documents, files or paragraphs of {MAX_CHARACTERS:,} characters",
        )  # fmt: skip
    return corpus


def _divided(name: str, texts: Iterable[str]) -> Corpus:
    parts: tuple[list[str], list[str]] = [], []
    for text in dict.fromkeys(t for t in texts if t.strip()):
        held = int(digest("held out", text)[:8], 16) % HELD_OUT == 0
        parts[held].append(text)
    train, held_out = (_dataset(texts) for texts in parts)
    return Corpus(name, train, held_out, sum(len(t) for part in parts for t in part))


def _dataset(texts: list[str]) -> Dataset:
    made = Dataset.from_dict({"text": texts})
    made._fingerprint = digest("tour corpus", *texts)
    return made
