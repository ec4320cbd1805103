"""`maypole curate score` and `maypole curate prune`, from the words on the command line to the directory they leave."""

import importlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from maypole.cli.main import run
from maypole.core.artifact import Artifact
from maypole.core.progress import set_quiet
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Scores
from maypole.models import save
from tests.curate.curate_fixtures import contents, kept_ids, table, texts, written
from tests.engine.engine_fixtures import lm_of

ROOT = Path(__file__).parents[2]
SCORE = "score --model reference --data corpus --out o"
TRAIN = "--train.max-steps 3 --train.examples-per-step 4 --train.learning-rate 1e-2 --train.precision fp32"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference`, `other` of other weights, and `new` that has a config and a tokenizer only."""
    folder = tmp_path_factory.mktemp("models")
    save(lm_of(), folder / "reference")
    save(lm_of(seed=1), folder / "other")
    shutil.copytree(folder / "reference", folder / "new", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    for name in ("reference", "other", "new"):
        Path(name).symlink_to(models / name)
    written(Path("corpus"), texts(60))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    set_quiet(True)


@pytest.fixture
def maypole(capsys):
    def maypole(line: str) -> tuple[int, str, str]:
        code = run(["curate", *shlex.split(line)])
        return code, *capsys.readouterr()

    return maypole


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maypole.models.loading.load", None)


def test_scores_are_kept_by_file_with_the_model_that_made_them(maypole, models):
    code, out, err = maypole(f"{SCORE} --json")
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert {name: found[name] for name in ("documents", "scored", "shards", "dropped")} == {
        "documents": 60, "scored": 60, "shards": 3, "dropped": {},
    }  # fmt: skip
    scores = Scores.open("o")
    assert [origin.name for origin in scores.origins] == ["a.jsonl", "b.jsonl.zst", "c.parquet"]
    assert len({origin.model for origin in scores.origins}) == 1
    nll, tokens = (np.array(table(Path("o"))[name]) for name in ("nll", "n_tokens"))
    assert found["nats_per_token"] == pytest.approx((nll * tokens).sum() / tokens.sum(), rel=1e-6)


def test_pruning_scores_once_and_chooses_often(maypole, monkeypatch):
    code, _, err = maypole("prune --model reference --data corpus --criterion medium --out medium")
    assert code == 0, err
    assert len(kept_ids(Path("medium/data"))) == 30
    assert maypole(SCORE)[0] == 0
    assert contents(Path("medium/scores")) == contents(Path("o"))
    assert Artifact.load("medium/scores").key == Artifact.load("o").key
    no_model(monkeypatch)
    for criterion, rate, kept in (("low", 0.25, 15), ("high", 0.75, 45), ("random", 0.5, 30)):
        line = f"prune --scores medium/scores --data corpus --criterion {criterion} --rate {rate} --out {criterion}"
        plan = json.loads(maypole(f"{line} --dry-run --json")[1])
        assert (plan["rows_kept"], plan["rows_dropped"]) == (kept, {"not selected": 60 - kept})
        assert maypole(line)[0] == 0
        assert len(kept_ids(Path(criterion, "data"))) == kept
        assert Artifact.load(criterion).manifest["metrics"]["kept_documents"] == kept


def test_a_finished_result_is_returned_without_a_model_and_another_is_refused(maypole, monkeypatch):
    line = "prune --model reference --data corpus --out o"
    first = maypole(line)[1]
    no_model(monkeypatch)
    assert maypole(f"{line} --workers 2 --tokens-per-batch 99")[:2] == (0, first)
    assert json.loads(maypole(f"{line} --dry-run --json")[1])["reuses"] == ["o"]
    code, _, err = maypole(f"{line} --rate 0.25")
    assert code == 2
    assert "rate: 0.5 then, 0.25 now" in err


def killed(line: str, tmp_path: Path, where: str) -> None:
    """Run a command that kills itself where the second shard is worked on."""
    program = f"""
import os, signal, sys
import {where.rpartition(".")[0]} as module
from maypole.cli.main import run
real = module.{where.rpartition(".")[2]}
def fatal(state, shard, path):
    if shard.index == 1:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return real(state, shard, path)
module.{where.rpartition(".")[2]} = fatal
run(sys.argv[1:])
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", program, "curate", *line.split()]
    assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not Path("o").exists()


def test_a_killed_scoring_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(maypole, tmp_path, monkeypatch):
    assert maypole(SCORE.replace("--out o", "--out whole"))[0] == 0
    killed(SCORE, tmp_path, "maypole.curate.perplexity_pruning.scoring._score_shard")
    stamp = Path("o.part/00000.parquet").stat().st_mtime_ns
    assert json.loads(maypole(f"{SCORE} --dry-run --json")[1])["reuses"] == ["o.part"]
    code, _, err = maypole(SCORE.replace("reference", "other"))
    assert code == 2
    assert "o.part: holds unfinished work of another command" in err
    assert "input model" in err
    assert maypole(SCORE)[0] == 0
    assert contents(Path("o")) == contents(Path("whole"))
    assert Path("o/00000.parquet").stat().st_mtime_ns == stamp


def test_weights_that_changed_in_their_place_do_not_go_on_with_the_scores_of_the_old_ones(maypole, models, tmp_path):
    shutil.copytree(models / "reference", "mine")
    line = SCORE.replace("reference", "mine")

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maypole.curate.perplexity_pruning.scoring._report", interrupted)
        code, _, err = maypole(line)
    assert code == 130
    assert err.endswith(f"stopped. Continue:  maypole curate {line}\n")
    shutil.copyfile(models / "other" / "model.safetensors", "mine/model.safetensors")
    code, _, err = maypole(line)
    assert code == 2
    assert "input model: its content" in err
    assert maypole(f"{line} --force")[0] == 0
    assert maypole(f"{line.replace('mine', 'other')}2")[0] == 0
    assert table(Path("o"))["nll"] == table(Path("o2"))["nll"]


def test_an_interrupted_pruning_goes_on_and_ends_with_the_same_bytes(maypole):
    line = "prune --model reference --data corpus --criterion high --out o"
    assert maypole(line.replace("--out o", "--out whole"))[0] == 0
    from maypole.curate.perplexity_pruning import pruning

    real = pruning._prune_shard

    def interrupted(cut, shard, path):
        if shard.index == 1:
            signal.raise_signal(signal.SIGINT)
        return real(cut, shard, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_prune_shard", interrupted)
        assert maypole(line)[0] == 130
    assert Path("o.part/data/a.jsonl").is_file()
    assert Path("o.part/scores/manifest.json").is_file()
    with pytest.MonkeyPatch.context() as patch:
        no_model(patch)
        assert maypole(line)[0] == 0
    assert contents(Path("o")) == contents(Path("whole"))


def test_workers_on_ray_give_the_bytes_of_one_process(maypole):
    assert importlib.util.find_spec("ray"), "the test extra installs it"
    line = "prune --model reference --data corpus --criterion medium"
    assert maypole(f"{line} --out one")[0] == 0
    code, out, err = maypole(f"{line} --out two --workers 2 --ray local --json")
    assert code == 0, err
    assert json.loads(out)["path"] == "two"
    assert contents(Path("two")) == contents(Path("one"))


@pytest.mark.parametrize("model", ["new", "reference"])
def test_a_reference_is_trained_on_a_share_that_then_has_no_score(maypole, model):
    line = f"score --model {model} --train-reference 0.3 {TRAIN} --data corpus --out o"
    plan = json.loads(maypole(f"{line} --dry-run --json")[1])
    assert plan["steps"] == 3
    assert plan["rows_kept"] + plan["rows_dropped"]["in the reference's split"] == 60
    code, out, err = maypole(f"{line} --json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    assert metrics["dropped"] == plan["rows_dropped"]
    assert 8 <= metrics["dropped"]["in the reference's split"] <= 28
    trained = Artifact.load("o/reference")
    assert trained.manifest["metrics"]["steps"] == 3
    assert Scores.open("o").origins[0].model == trained.key
    code, _, err = maypole("score --model o/reference --data corpus --out alone")
    assert code == 0, err
    alone = dict(zip(table(Path("alone"))["id"], table(Path("alone"))["nll"]))
    scored = dict(zip(table(Path("o"))["id"], table(Path("o"))["nll"]))
    assert len(scored) == metrics["scored"]
    assert scored == pytest.approx({name: alone[name] for name in scored}, abs=1e-5)
    code, _, err = maypole("prune --scores o --data corpus --rate 1 --out pruned")
    assert code == 0, err
    assert sorted(kept_ids(Path("pruned/data"))) == sorted(scored)


def test_an_interrupted_training_of_the_reference_goes_on(maypole):
    line = f"score --model new --train-reference 0.3 {TRAIN} --data corpus"
    assert maypole(f"{line} --out whole")[0] == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maypole.curate.perplexity_pruning.scoring.map_shards", interrupted)
        assert maypole(f"{line} --out o")[0] == 130
    assert Path("o.part/reference/model.safetensors").is_file()
    assert maypole(f"{line} --out o")[0] == 0
    assert contents(Path("o")) == contents(Path("whole"))


def test_ids_that_the_reference_has_seen_are_counted_and_have_no_score(maypole):
    Path("seen.jsonl").write_text("".join(json.dumps({"id": f"d{i}", "text": "x"}) + "\n" for i in (3, 30, 59, 1000)))
    assert maypole(f"{SCORE} --seen seen.jsonl")[0] == 0
    assert Artifact.load("o").manifest["metrics"]["dropped"] == {"seen by the reference": 3}
    assert not {"d3", "d30", "d59"} & set(table(Path("o"))["id"])


def test_dry_run_tells_the_plan_and_writes_nothing(maypole):
    with Path("corpus/a.jsonl").open("a") as file:
        file.write('{"id": "e", "text": " ", "domain": "wiki", "extra": 0}\n')
    before = sorted(Path().rglob("*"))
    plan = json.loads(maypole(f"{SCORE} --dry-run --json")[1])
    assert (plan["rows_kept"], plan["rows_dropped"]) == (60, {"empty": 1})
    assert plan["minutes"] >= 0
    assert plan["peak_memory_bytes"] > 1_000_000
    assert {"report.json", "manifest.json"} <= set(plan["files"])
    assert [path for path in sorted(Path().rglob("*")) if "cache" not in path.parts] == before


@pytest.mark.parametrize("verb", ["score", "prune"])
def test_the_examples_of_the_help_run(maypole, verb):
    doc = getattr(importlib.import_module("maypole.curate.verbs"), verb).__doc__ or ""
    lines = [line.strip().removeprefix("maypole curate ") for line in doc.splitlines() if "    maypole" in line]
    assert len(lines) == 2
    assert maypole(f"{SCORE.replace('--out o', '--out medium/scores')}")[0] == 0
    for i, line in enumerate(lines):
        line = re.sub("--out [a-z]+", f"--out fresh{i}", line)
        assert maypole(f"{line} --dry-run")[0] == 0
        code, _, err = maypole(line)
        assert code == 0, err


def test_the_example_file_runs(maypole):
    line = f"prune --config {ROOT / 'examples' / 'curate_prune.yaml'} --columns domain=domain"
    assert json.loads(maypole(f"{line} --dry-run --json")[1])["rows_kept"] == 60
    code, _, err = maypole(line)
    assert code == 0, err
    assert Artifact.load("pruned").manifest["metrics"]["kept_documents"] == 30


def test_the_settings_that_a_result_keeps_make_it_again(maypole):
    line = "prune --model reference --data corpus --criterion low --stratify domain --by token --out o"
    assert maypole(line)[0] == 0
    assert maypole("prune --config o/config.yaml --out again")[0] == 0
    assert Artifact.load("again").key == Artifact.load("o").key
    assert contents(Path("again")) == contents(Path("o"))


def test_columns_have_the_names_that_are_given(maypole):
    rows = [{"url": f"u{i}", "body": t, "meta": {"source": "ab"[i % 2]}} for i, t in enumerate(texts(8))]
    Path("named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = "score --model reference --data named.jsonl --columns text=body id=url domain=meta.source --out o"
    code, _, err = maypole(line)
    assert code == 0, err
    found = table(Path("o"))
    assert found["id"] == [row["url"] for row in rows]
    assert found["domain"] == [row["meta"]["source"] for row in rows]


def test_shards_of_different_columns_are_counted_and_keep_their_own(maypole):
    rows = pq.read_table("corpus/c.parquet")
    pq.write_table(rows.drop_columns("extra").append_column("more", rows["extra"]), "corpus/c.parquet")
    assert maypole("prune --model reference --data corpus --rate 1 --out o")[0] == 0
    assert json.loads(Path("o/report.json").read_text())["column_layouts"] == 2
    assert pq.read_table("o/data/c.parquet").schema == pq.read_table("corpus/c.parquet").schema


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
        ("score --data corpus --columns title=x", "--columns: 'title=x' does not work"),
        ("score --data corpus --max-length 100000", "--max-length: 100000 does not work"),
        ("score --data corpus --max-length 1", "--max-length: 1 does not work"),
        ("score --data corpus --max-tokens 0", "--max-tokens: 0 does not work"),
        ("score --data corpus --workers 0", "--workers: 0 does not work"),
        ("score --data corpus --train-reference 1", "--train-reference: 1.0 does not work"),
        ("score --data corpus --train-reference -0.1", "--train-reference: -0.1 does not work"),
        ("score --data corpus --train-reference 1e-9", "a share of 1e-09 holds no document"),
        ("score --data corpus --train.max-steps 3", "--train-reference: 0.0 does not work"),
        ("score --data corpus --seen blank.jsonl", "documents with a column id"),
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
