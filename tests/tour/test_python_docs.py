import importlib.util
import sys
from functools import cache
from pathlib import Path

from maypole.tour.python_docs import MAX_CHARACTERS, python_docs, split_at_paragraphs


@cache
def documents() -> list[dict[str, str]]:
    return list(python_docs())


def test_the_corpus_is_a_megabyte_in_more_than_two_thousand_documents() -> None:
    assert len(documents()) > 2000
    assert 1_000_000 < sum(len(row["text"]) for row in documents()) < 4_000_000


def test_paths_are_unique_and_texts_are_never_too_long_or_empty() -> None:
    assert len({row["path"] for row in documents()}) == len(documents())
    assert all(0 < len(row["text"]) <= MAX_CHARACTERS for row in documents())


def test_a_function_is_headed_by_its_name_and_signature_and_carries_its_docstring() -> None:
    text = next(row["text"] for row in documents() if row["path"] == "module/bisect.bisect_left")
    assert text.startswith("bisect.bisect_left(a, x, lo=0, hi=None, *, key=None)\n\n")
    assert "The return value i is such that" in text


def test_topics_come_first_and_private_names_and_tests_never() -> None:
    assert documents()[0]["path"].startswith("topics/")
    names = [row["path"].removeprefix("module/").split(".") for row in documents() if row["path"].startswith("module/")]
    assert [name for name in names if any(part.startswith("_") for part in name)] == []
    assert {name[0] for name in names} & {"idlelib", "test", "lib2to3", "distutils"} == set()


def test_reading_imports_no_documented_module(tmp_path: Path) -> None:
    module = tmp_path / "loud.py"
    module.write_text('"""' + "Words of a module that must not run. " * 4 + '"""\nraise SystemExit\n')
    assert [row["path"] for row in python_docs(tmp_path)] == ["module/loud"]
    assert "loud" not in sys.modules
    assert importlib.util.find_spec("loud") is None


def test_two_readings_are_equal_and_repeats_are_dropped(tmp_path: Path) -> None:
    body = "The same words stand in two functions, which makes one document of them and not two. " * 2
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f'def f():\n    """{body}"""\n')
    rows = list(python_docs(tmp_path))
    assert [row["path"] for row in rows] == ["module/a.f"]
    assert rows == list(python_docs(tmp_path))


def test_long_texts_are_cut_at_empty_lines_without_losing_words() -> None:
    text = "\n\n".join(f"paragraph {i} " + "word " * 40 for i in range(100))
    parts = split_at_paragraphs(text, 1000)
    assert all(len(part) <= 1000 for part in parts)
    assert " ".join(parts).split() == text.split()
    assert all(part.startswith("paragraph") for part in parts)
    assert [len(part) for part in split_at_paragraphs("x" * 2500, 1000)] == [1000, 1000, 500]
