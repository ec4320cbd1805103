import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from maypole.core.errors import DataError
from maypole.tour import corpus as module
from maypole.tour.corpus import LEAST, divided, load_corpus
from tests.tour.conftest import sentences

TEXTS = [sentences(80, seed=i) for i in range(30)]


def written(folder: Path, kind: str) -> Path:
    """The same texts in a form."""
    if kind == "folder":
        for i, text in enumerate(TEXTS):
            (folder / f"{i}.{'md' if i % 2 else 'txt'}").write_text(text)
        return folder
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    else:
        pyarrow.parquet.write_table(pa.table({"text": TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_every_form_gives_the_same_texts_and_the_same_held_out_ones(kind, tmp_path):
    corpus = load_corpus(written(tmp_path, kind))
    joined = [*corpus.train["text"], *corpus.held_out["text"]]
    assert sorted(" ".join(joined).split()) == sorted(" ".join(TEXTS).split())
    part = max(len("".join(TEXTS)) // 40, 250)
    assert corpus.held_out["text"] == divided("", TEXTS, part).held_out["text"]


def test_whole_documents_are_held_out_where_there_are_many(tmp_path):
    corpus = load_corpus(written(tmp_path, "folder"))
    held = {next(i for i, text in enumerate(TEXTS) if piece in text) for piece in corpus.held_out["text"]}
    trained = {next(i for i, text in enumerate(TEXTS) if piece in text) for piece in corpus.train["text"]}
    assert len(held) == 5
    assert not held & trained


def test_one_long_text_is_cut_and_some_of_its_parts_are_held_out(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(TEXTS))
    corpus = load_corpus(tmp_path / "book.txt")
    assert corpus.documents >= 40
    assert len(corpus.held_out) >= 5
    assert corpus.name == "book.txt"


def test_the_division_depends_on_the_texts_alone(tmp_path):
    first, second = divided("a", TEXTS), divided("b", list(reversed(TEXTS)))
    assert first.held_out["text"] == second.held_out["text"]
    assert set(first.train["text"]) == set(second.train["text"])


def test_equal_texts_count_once_so_that_none_is_held_out_and_trained_on():
    corpus = divided("twice", TEXTS * 2)
    assert corpus.documents == len(TEXTS)
    assert not set(corpus.train["text"]) & set(corpus.held_out["text"])


def test_a_tenth_of_the_default_corpus_is_held_out():
    corpus = load_corpus(None)
    assert 0.08 < len(corpus.held_out) / corpus.documents < 0.12
    assert corpus.summary.startswith("Python's documentation, 1.6M characters in ")


def test_of_a_corpus_too_large_an_even_sample_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 6_000)
    path = written(tmp_path, "jsonl")
    corpus = load_corpus(path)
    assert 3_000 < corpus.characters < 9_000
    assert "an even sample of " in corpus.summary


def test_too_little_text_is_refused_with_the_least_that_works(tmp_path):
    (tmp_path / "a.txt").write_text("A few words.")
    with pytest.raises(DataError, match="12 characters of text are too few") as error:
        load_corpus(tmp_path)
    assert f"at least {LEAST:,} characters" in str(error.value)


def test_one_text_again_and_again_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "Again and again. " * 10}) + "\n") * 100)
    with pytest.raises(DataError, match="1 different documents are too few"):
        load_corpus(tmp_path / "a.jsonl")
