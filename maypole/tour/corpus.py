"""The texts a tour works on, and the tenth of them that no stage trains on. Knows nothing about models."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from maypole.core.errors import DataError
from maypole.core.identity import digest
from maypole.data.reader import read
from maypole.data.rows import TEXT
from maypole.tour.python_docs import MAX_CHARACTERS, python_docs, split_at_paragraphs

LEAST = 10_000
"""Characters below which there is too little to hold out and to learn from."""
MOST = 64_000_000
"""Characters that a tour looks at: of a larger corpus it takes an even sample, so that memory stays bounded."""
HELD_OUT = 0.1
LEAST_HELD_OUT = 5
WHOLE_DOCUMENTS = 20
"""From so many documents on they are held out whole; of fewer, parts of them are."""
LEAST_PART = 250


@dataclass(frozen=True, slots=True)
class Corpus:
    """`train` and `held_out` have a column `text`, the latter in an order by hash, so that its first documents are a
    fair sample; `name` as a reader would say it."""

    name: str
    train: Dataset
    held_out: Dataset
    characters: int
    sampled: bool = False

    @property
    def documents(self) -> int:
        return len(self.train) + len(self.held_out)

    @property
    def identity(self) -> str:
        """Of all its texts and of how they are divided."""
        return digest("corpus", str(self.train._fingerprint), str(self.held_out._fingerprint))

    @property
    def summary(self) -> str:
        """ "notes, 1.6M characters in 2,824 documents"."""
        size = f"{self.characters / 1e6:.1f}M" if self.characters >= 1e6 else f"{self.characters / 1e3:.0f}k"
        sampled = "an even sample of " if self.sampled else ""
        return f"{self.name}, {sampled}{size} characters in {self.documents:,} documents"


def load_corpus(path: Path | None) -> Corpus:
    """The documents below `path`, or the installed Python's own documentation; equal texts count once.

    Long documents are cut at empty lines. DataError where there are too few characters to set some aside.
    """
    if path is None:
        return divided("Python's documentation", [row["text"] for row in python_docs()])
    rows = read(str(path), TEXT)
    total = sum(map(len, _texts(rows)))
    if total < LEAST:
        raise DataError(
            f"{total:,} characters of text are too few to set some aside and learn from the rest",
            file=path, expected=f"at least {LEAST:,} characters",
        )  # fmt: skip
    part = min(max(total // 40, LEAST_PART), MAX_CHARACTERS)
    return divided(path.resolve().name, _texts(rows), part, min(1.0, MOST / total), path)


def divided(
    name: str, texts: Iterable[str], part: int = MAX_CHARACTERS, share: float = 1.0, file: Path | None = None
) -> Corpus:
    """Documents cut into parts of at most `part` characters, a tenth of the documents (of the parts, where documents
    are few) held out, chosen by the hash of their text. `share` is the share of the parts that is taken at all."""
    pieces: dict[str, str] = {}  # part -> the document it is from
    for text in texts:
        for piece in split_at_paragraphs(text, part):
            if piece.strip() and _place("taken", piece) < share:
                pieces.setdefault(piece, digest(text))
    documents = set(pieces.values())
    whole = len(documents) >= WHOLE_DOCUMENTS
    unit = {piece: _place("held out", document if whole else piece) for piece, document in pieces.items()}
    places = sorted(set(unit.values()))
    count = max(LEAST_HELD_OUT, round(HELD_OUT * len(places)))
    if len(places) < 2 * LEAST_HELD_OUT:
        raise DataError(
            f"{len(places)} different documents are too few to set some aside and learn from the rest",
            file=file, expected=f"at least {2 * LEAST_HELD_OUT} that differ",
        )  # fmt: skip
    border = places[count]
    held = sorted((piece for piece, place in unit.items() if place < border), key=lambda p: _place("order", p))
    train = [piece for piece, place in unit.items() if place >= border]
    return Corpus(name, _dataset(train), _dataset(held), sum(map(len, pieces)), share < 1)


def _texts(rows: Dataset) -> Iterator[str]:
    batches: Any = rows.select_columns(["text"]).iter(1000)
    return (text for batch in batches for text in batch["text"])


def _place(purpose: str, text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(digest(purpose, text)[:12], 16) / 16**12


def _dataset(texts: list[str]) -> Dataset:
    made = Dataset.from_dict({"text": texts})
    made._fingerprint = digest("tour corpus", *texts)
    return made
