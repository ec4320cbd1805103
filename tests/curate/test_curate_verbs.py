"""`maypole curate score` and `maypole curate prune`, from the words on the command line to the directory they leave."""

import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maypole.core.artifact import Artifact
from maypole.curate.perplexity_pruning import Scores
from tests.curate.curate_fixtures import SCORE, contents, kept_ids, table, texts
from tests.docs_workplace import examples

COMMAND = "curate"
pytestmark = pytest.mark.usefixtures("here")
ROOT = Path(__file__).parents[2]
TRAIN = "--train.max-steps 3 --train.examples-per-step 4 --train.learning-rate 1e-2 --train.precision fp32"


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


def test_what_workers_are_given_can_be_sent_to_them(maypole, monkeypatch):
    from maypole.core import shards

    def here(setup, function, todo, workers):
        return shards._here(*pickle.loads(pickle.dumps((setup, function, dict(todo)))))

    line = "prune --model reference --data corpus --criterion medium --stratify length"
    assert maypole(f"{line} --out one")[0] == 0
    monkeypatch.setattr(shards, "_in_processes", here)
    code, _, err = maypole(f"{line} --out two --workers 2")
    assert code == 0, err
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
    read = metrics["dropped"]["in the reference's split"]
    assert Artifact.load("alone").manifest["metrics"]["dropped"] == {"seen by the reference": read}
    alone = dict(zip(table(Path("alone"))["id"], table(Path("alone"))["nll"]))
    scored = dict(zip(table(Path("o"))["id"], table(Path("o"))["nll"]))
    assert len(scored) == metrics["scored"]
    assert scored == pytest.approx(alone, abs=1e-5)
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
    assert maypole(f"{SCORE.replace('--out o', '--out medium/scores')}")[0] == 0
    for i, line in enumerate(examples("curate", verb)):
        code, _, err = maypole(verb + re.sub("--out [a-z]+", f"--out fresh{i}", line))
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
    flat = [{"text": row["body"], "meta.source": row["meta"]["source"]} for row in rows]
    Path("flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    code, _, err = maypole("score --model reference --data flat.jsonl --columns domain=meta.source --out p")
    assert code == 0, err
    assert table(Path("p"))["domain"] == found["domain"]
