"""What `maypole curate` says of input that is not as it should be, and what it leaves then."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from maypole.core.artifact import Artifact
from maypole.curate.corpus import open_corpus
from maypole.models import save
from tests.curate.curate_fixtures import SCORE, kept_ids, texts
from tests.engine.engine_fixtures import lm_of

COMMAND = "curate"
pytestmark = pytest.mark.usefixtures("here")


def test_shards_of_different_columns_are_counted_and_keep_their_own(maypole):
    rows = pq.read_table("corpus/c.parquet")
    pq.write_table(rows.drop_columns("extra").append_column("more", rows["extra"]), "corpus/c.parquet")
    assert maypole("prune --model reference --data corpus --rate 1 --max-length 21 --out o")[0] == 0
    report = json.loads(Path("o/report.json").read_text())
    assert report["column_layouts"] == 2
    assert pq.read_table("o/data/c.parquet").schema == pq.read_table("corpus/c.parquet").schema
    long = sum(len(text) > 20 for text in texts(60))
    assert report["longer_than_context"] == long > 0
    said = f"and read in windows: {long} documents. The files have 2 different sets of columns or types; each keeps"
    assert said in Path("o/README.md").read_text()


def test_columns_of_other_types_are_another_layout():
    rows = pq.read_table("corpus/c.parquet")
    assert open_corpus(["corpus"]).layouts == 1
    pq.write_table(rows, "corpus/d.parquet")
    assert open_corpus(["corpus"]).layouts == 1
    at = rows.schema.get_field_index("extra")
    pq.write_table(rows.set_column(at, "extra", rows["extra"].cast("string")), "corpus/d.parquet")
    assert open_corpus(["corpus"]).layouts == 2


def test_scores_that_are_not_numbers_are_counted_and_never_kept(maypole):
    lm = lm_of(tie_word_embeddings=False)
    embeddings = lm.model.get_input_embeddings().weight
    with torch.no_grad():  # who reads a z answers nothing at all
        embeddings[lm.tokenizer.encode("z", add_special_tokens=False)[0]] = float("nan")
    save(lm, "odd")
    odd = {f"d{i}" for i, text in enumerate(texts(60)) if "z" in text[:-1]}
    code, _, err = maypole("prune --model odd --data corpus --rate 1 --out o")
    assert code == 0, err
    report = json.loads(Path("o/report.json").read_text())
    assert report["dropped"] == {"score is not a number": len(odd)}
    assert Artifact.load("o/scores").manifest["metrics"]["dropped"] == report["dropped"]
    assert set(kept_ids(Path("o/data"))) == {f"d{i}" for i in range(60)} - odd
    Path("zz.jsonl").write_text('{"text": "zz"}\n{"text": "zzz"}\n')
    code, _, err = maypole("prune --model odd --data zz.jsonl --out nothing")
    assert code == 2
    assert "none of 2 documents has a score (score is not a number: 2)" in err
    assert not list(Path().glob("nothing*"))


def test_a_reference_that_diverged_is_named(maypole):
    lm = lm_of()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[:] = float("nan")
    save(lm, "mad")
    code, _, err = maypole("score --model mad --data corpus --out o")
    assert code == 2
    assert "this llama model answers with logits that are not numbers" in err


def _damage() -> None:
    """What the next test's lines speak of."""
    whole = Path("corpus/b.jsonl.zst").read_bytes()
    Path("cut").mkdir()
    Path("cut/b.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    Path("cut/c.parquet").write_bytes(Path("corpus/c.parquet").read_bytes()[:-20])
    Path("lacks").mkdir()
    Path("lacks/a.jsonl").write_text('{"id": "1", "text": "abc"}\n')
    Path("lacks/b.jsonl").write_text('{"id": "1", "body": "abc"}\n')
    Path("some").mkdir()
    Path("some/a.jsonl").write_text('{"id": "1", "text": "abc"}\n')
    Path("some/b.jsonl").write_text('{"text": "abc"}\n')
    Path("null.jsonl").write_text('{"text": "abc"}\n{"text": null}\n')
    Path("list.jsonl").write_text('{"text": "abc", "id": [1]}\n')
    Path("empty.jsonl").write_text("")
    Path("blank.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    Path("plain.jsonl").write_text('{"text": "abc"}\n{"text": "def"}\n')
    Path("inner").mkdir()
    for name, meta in (("a", {"source": "x"}), ("b", {"site": "x"})):
        pq.write_table(pa.Table.from_pylist([{"text": "abc", "meta": meta}]), f"inner/{name}.parquet")
    Path("notes.txt").write_text("abc")
    Path("nothing").mkdir()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("score --data none", "none: no such file or folder"),
        ("score --data nothing", "nothing: the folder is empty"),
        ("score --data notes.txt", "notes.txt: files of this kind cannot be curated"),
        ("score --data empty.jsonl", "empty.jsonl: there are no rows in it"),
        ("score --data blank.jsonl", "none of 2 documents has a score (empty: 2)"),
        ("score --data null.jsonl", 'null.jsonl row 2, field "text": expected a string, found null'),
        ("score --data list.jsonl", 'list.jsonl row 1, field "id": expected a string or a number'),
        ("score --data lacks", 'lacks/b.jsonl row 1: no column "text"; found id, body'),
        ("score --data lacks", "--columns text=body"),
        ("score --data some", 'some/b.jsonl: no column "id", which a.jsonl has'),
        ("score --data cut/b.jsonl.zst", "cut/b.jsonl.zst"),
        ("score --data cut/c.parquet", "cut/c.parquet: no readable Parquet file"),
        ("score --data corpus corpus/a.jsonl", "another file is called a.jsonl too"),
        ("score --data corpus --columns text=body", 'corpus/a.jsonl row 1: no column "body"'),
        ("score --data inner --columns domain=meta.source", 'inner/b.parquet row 1: no column "meta.source"; found'),
        ("score --data corpus --columns title=x", "--columns: 'title=x' does not work"),
        ("score --data corpus --max-length 100000", "--max-length: 100000 does not work"),
        ("score --data corpus --max-length 1", "--max-length: 1 does not work"),
        ("score --data corpus --max-tokens 0", "--max-tokens: 0 does not work"),
        ("score --data corpus --workers 0", "--workers: 0 does not work"),
        ("score --data corpus --train-reference 1", "--train-reference: 1.0 does not work"),
        ("score --data corpus --train-reference -0.1", "--train-reference: -0.1 does not work"),
        ("score --data corpus --train-reference 1e-9", "a share of 1e-09 holds no document"),
        ("score --data corpus --train-reference 0.3 --train.max-length 9999", "--train.max-length: 9999 does not work"),
        ("score --data corpus --train.max-steps 3", "--train-reference: 0.0 does not work"),
        ("score --data corpus --seen blank.jsonl", "documents with a column id"),
        ("score --data plain.jsonl --seen corpus", "--seen: 'plain.jsonl' does not work"),
        ("score --data corpus --seen none.jsonl", "none.jsonl: no such file or folder"),
        ("score --data corpus --model nowhere", "nowhere: no such directory"),
        ("score --data corpus --model new", "new: it has no weights"),
        ("score --data corpus --ray 127.0.0.1:1", "--ray: '127.0.0.1:1' does not work"),
        ("prune --data corpus --rate 0", "--rate: 0.0 does not work"),
        ("prune --data corpus --rate 1.01", "--rate: 1.01 does not work"),
        ("prune --data corpus --rate nan", "--rate: nan does not work"),
        ("prune --data corpus --scores scores --rate 0.001", "of 60 documents this keeps none"),
        ("prune --data corpus --criterion middle", "--criterion"),
        ("prune --data corpus --scores scores --model reference", "--model: 'reference' does not work"),
        ("prune --data corpus --scores scores --max-tokens 9", "--max-tokens: 9 does not work"),
        ("prune --data corpus --scores none", "none: does not exist"),
        ("prune --data corpus --scores reference", "reference: has no manifest.json"),
        ("prune --data null.jsonl --scores scores", "there are scores of 3 files, and the corpus has 1"),
        ("prune --data corpus", "--model: is required"),
    ],
)
def test_wrong_input_exits_2_with_one_paragraph_and_leaves_nothing(maypole, models, line, said):
    _damage()
    if "--scores scores" in line:
        assert maypole("score --model reference --data corpus --out scores")[0] == 0
    model = "" if "--model" in line or "--scores" in line or "is required" in said else "--model reference"
    for more in ("--dry-run", ""):
        code, out, err = maypole(f"{line} {model} --out out --quiet {more}")
        if more and said in _ONLY_FOUND_ON_THE_WAY:
            continue
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert said in err
        assert "Traceback" not in err
        assert not [path for path in Path().iterdir() if path.name.startswith("out")]


_ONLY_FOUND_ON_THE_WAY = (
    "none of 2 documents has a score (empty: 2)",
    "a share of 1e-09 holds no document",
    "--train.max-length: 9999 does not work",
    "--ray: '127.0.0.1:1' does not work",
)


def test_scores_of_two_models_are_not_taken_together(maypole):
    assert maypole(SCORE)[0] == 0
    assert maypole(f"{SCORE}2".replace("reference", "other"))[0] == 0
    shutil.copyfile("o2/00001.parquet", "o/00001.parquet")
    code, _, err = maypole("prune --scores o --data corpus --out p")
    assert code == 2
    assert "o/00001.parquet: its scores are of another model or context than those in 00000.parquet" in err


def test_scores_of_a_corpus_that_changed_are_refused(maypole):
    assert maypole(SCORE)[0] == 0
    with Path("corpus/a.jsonl").open("a") as file:
        file.write('{"id": "late", "text": "abc", "domain": "wiki", "extra": 1}\n')
    code, _, err = maypole("prune --scores o --data corpus --out p")
    assert code == 2
    assert "corpus/a.jsonl: the scores are not of this file: its content has changed" in err
    assert open_corpus(["corpus"]).shards[0].name == "a.jsonl"
