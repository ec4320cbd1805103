"""`maypole evaluate facts`, from the words on the command line to the facts that it keeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from maypole.core.artifact import Artifact
from maypole.models import save
from tests.engine.engine_fixtures import lm_of

COMMAND = "evaluate facts --quiet"
FACTS = """
from maypole.evaluate import AtomicChecker, KnowledgeGraph

graph = KnowledgeGraph([("Mara", "job", "baker")], lambda fact: ("Mara", "job", fact.rsplit(" ", 1)[-1]))
checker = AtomicChecker(lambda topics, texts: [text.split(". ") for text in texts], graph.verify, graph.subjects)
number = 7
"""
ANSWERS = [
    {"topic": "Mara", "output": "Mara is a baker. Mara is a miller"},
    {"topic": "Mara", "output": "Mara is a baker"},
    {"topic": "Mara", "output": ""},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(lm_of("llama", max_position_embeddings=4096), folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place, model):
    Path("base").symlink_to(model)
    Path("facts.py").write_text(FACTS)
    Path("find.py").write_text("def search(query, k):\n    return ['Mara bakes.'] * k\n")
    write("answers.jsonl", ANSWERS)
    write("known.jsonl", [{"title": "Mara", "text": "Mara is a baker."}, {"title": "Tom", "text": "Tom sings."}])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_precision_comes_with_facts_right_and_wrong_with_silence_and_with_length(maypole):
    code, out, err = maypole("--data answers.jsonl --checker facts.py:checker --json")
    assert code == 0, err
    report = json.loads(out)
    assert report["precision"] == pytest.approx(0.75)
    assert (report["correct"], report["errors"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (report["respond_ratio"], report["abstained"]) == (pytest.approx(2 / 3), 1)
    assert report["words"] == pytest.approx(12 / 3)
    assert report["low"] <= 0.75 <= report["high"]
    assert report["score"] < 0.01  # so few facts


def test_every_fact_is_kept_with_its_verdict_and_its_passages(maypole):
    code, _, err = maypole("--data answers.jsonl --checker facts.py:checker --out checked")
    assert code == 0, err
    assert Artifact.load("checked").manifest["metrics"]["errors"] == pytest.approx(1 / 3)
    items = [json.loads(line) for line in Path("checked", "items.jsonl").read_text().splitlines()]
    assert [fact["verdict"] for fact in items[0]["facts"]] == ["supported", "contradicted"]
    assert items[0]["facts"][0]["evidence"] == ["Mara | job | baker"]
    assert items[2]["abstained"]


@pytest.mark.parametrize("more", ["", "--by-title", "--together --k 1", "--checker base"])
def test_a_model_reads_the_documents_and_remembers_what_it_said(maypole, more: str):
    line = f"--model base --data answers.jsonl --evidence known.jsonl {more} --json"
    code, out, err = maypole(line)
    assert code == 0, err
    report = json.loads(out)
    assert report["whole"] == 3  # a random model makes no lists
    assert report["answers"] == 3
    assert Path("cache", "facts", "facts.sqlite").is_file()
    assert maypole(line)[1] == out


def test_a_retriever_may_be_a_function(maypole):
    code, out, err = maypole("--model base --data answers.jsonl --evidence find.py:search --json")
    assert code == 0, err
    assert json.loads(out)["no_evidence"] == 0


def test_nothing_found_is_counted(maypole):
    write("known.jsonl", [{"title": "", "text": "zzz"}])
    report = json.loads(maypole("--model base --data answers.jsonl --evidence known.jsonl --json")[1])
    assert report["no_evidence"] == 3
    assert report["precision"] == 0.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model base", "documents or a retriever"),
        ("--evidence known.jsonl", "--model: is required"),
        ("--checker facts.py:checker --evidence known.jsonl", "none beside a checker of your own"),
        ("--checker facts.py:number", "a int is no checker"),
        ("--checker facts.py:nothing", "no function 'nothing'"),
        ("--checker facts.py:checker --by-title", "--by-title"),
        ("--checker facts.py:checker --gamma 0", "--gamma"),
        ("--model base --evidence known.jsonl --k 0", "--k"),
        ("--model base --evidence known.jsonl --language xx", "--language"),
    ],
)
def test_what_cannot_work_is_said(maypole, words: str, says: str):
    code, _, err = maypole(f"--data answers.jsonl {words}")
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    ("rows", "words", "says"),
    [
        ([{"topic": "Mara", "said": "x"}], "--checker facts.py:checker", "none of output, completion, answer is there"),
        ([{"topic": "Mara", "output": None}], "--checker facts.py:checker", 'field "output": expected a string'),
        ([{"topic": "Ilse", "output": "x"}], "--checker facts.py:checker", "no document has the title 'Ilse'"),
        ([{"topic": "Ilse", "output": "x"}], "--model base --evidence known.jsonl --by-title", "the title 'Ilse'"),
    ],
)
def test_rows_that_cannot_be_checked_are_named(maypole, rows: list[dict[str, Any]], words: str, says: str):
    write("answers.jsonl", rows)
    code, _, err = maypole(f"--data answers.jsonl {words}")
    assert code == 2
    assert says in err
