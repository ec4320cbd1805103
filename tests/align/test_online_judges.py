"""`maypole align online --judge DIR`: the judge is a model that `maypole align reward` trained."""

import json
import shlex
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maypole.cli.main import run
from maypole.core.judge import symmetric
from maypole.core.progress import set_quiet
from maypole.evaluate import judges
from maypole.models import load, save
from tests.align.online_fixtures import samples_of
from tests.engine.engine_fixtures import lm_of

SHORT = "--train.examples-per-step 4 --train.precision fp32 --max-tokens 5 --n 3 --rounds 2"
REWARD = "--train.examples-per-step 4 --train.max-steps 2 --train.precision fp32 --held-out 0.3"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, and two judges on the way there: a score head and a pair model."""
    folder = tmp_path_factory.mktemp("models")
    save(lm_of("llama"), folder / "base")
    rows = [{"prompt": f"question {i}", "chosen": " yes", "rejected": " no"} for i in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("bradley-terry", "pair"):
        line = f"--type {kind} --model {folder}/base --data {folder}/pairs.jsonl --out {folder}/{kind} {REWARD}"
        assert run(["align", "reward", "--quiet", *shlex.split(line)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    for name in ("base", "bradley-terry", "pair"):
        Path(name).symlink_to(models / name)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(8)))
    yield
    set_quiet(False)


def maypole(line: str) -> int:
    return run(["align", "online", "--quiet", *shlex.split(line)])


@pytest.mark.parametrize(("kind", "method"), [("bradley-terry", "dpo"), ("bradley-terry", "sppo"), ("pair", "sppo")])
def test_the_scores_of_a_round_are_those_that_the_judge_gives(capsys, kind: str, method: str):
    line = f"--method {method} --model base --data prompts.jsonl --judge {kind} {SHORT} --out better"
    assert maypole(f"{line} --dry-run") == 0, capsys.readouterr().err
    assert not Path("better").exists()
    assert maypole(line) == 0, capsys.readouterr().err
    load("better")
    judge: Any = judges.load(kind)
    for round in range(2):
        for sample in samples_of(Path("better"), round):
            prompt, answers = sample["prompt"], sample["completions"]
            if kind == "pair":
                (wins,) = symmetric(judge)(prompts=[prompt], a=answers[:1], b=answers[1:2])
                assert sample["probabilities"][0][1] == pytest.approx(cast(float, wins), abs=1e-5)
            else:
                scores = judge(prompts=[prompt] * 3, completions=answers)
                assert sample["scores"] == pytest.approx(scores, abs=1e-5)
                if method == "sppo":
                    rate = 1 / (1 + np.exp(scores[1] - scores[0]))
                    assert sample["probabilities"][0][1] == pytest.approx(rate, abs=1e-5)


def test_a_directory_that_judges_nothing_is_named_before_anything_is_sampled(capsys):
    code = maypole(f"--model base --data prompts.jsonl --judge base {SHORT} --out better")
    assert code == 2
    said = capsys.readouterr().err
    assert "neither scores texts nor compares them" in said
    assert "base" in said
    assert not Path("better.part").exists()
