import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun
from maypole.core.errors import ConfigError, DataError, UserError
from maypole.engine import verbs
from maypole.models.saving import save
from tests.engine.engine_fixtures import lm_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save(lm_of(), path)
    return str(path)


def _rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_commands_are_imported_without_torch():
    code = "import sys, maypole.engine.verbs, maypole.evaluate.verbs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_prompts_are_continued_and_kept(directory: str, tmp_path: Path):
    data = _rows(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(70)])
    options = {"model": directory, "data": (data,), "max_tokens": 4, "temperature": 0.7, "seed": 3}
    shown = verbs.generate(verbs.GenerateOptions(**options))
    assert isinstance(shown, verbs.Results)
    kept = verbs.generate(verbs.GenerateOptions(**options, out=tmp_path / "out"))
    assert isinstance(kept, Artifact)
    assert kept.manifest["metrics"]["rows"] == 70
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == [row.completion for row in shown.rows]
    assert lines[69]["prompt"] == "p69"


def test_an_interrupted_run_repeats_only_what_is_missing(directory: str, tmp_path: Path, monkeypatch):
    data = _rows(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(10)])
    config = verbs.GenerateOptions(model=directory, data=(data,), max_tokens=3, seed=1, out=tmp_path / "out")
    monkeypatch.setattr(verbs, "CHUNK", 4)
    real, calls = verbs.write_atomic, []

    def breaking(path: Path, text: str) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path.name)
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(verbs, "write_atomic", breaking)
        with pytest.raises(KeyboardInterrupt):
            verbs.generate(config)
    assert verbs.generate(config).path == tmp_path / "out"  # pyright: ignore[reportAttributeAccessIssue]
    whole = verbs.generate(verbs.GenerateOptions(model=directory, data=(data,), max_tokens=3, seed=1))
    assert isinstance(whole, verbs.Results)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == [row.completion for row in whole.rows]
    assert calls == ["000000000.jsonl", "000000004.jsonl"]


def test_continuations_are_scored(directory: str):
    found = verbs.score(verbs.ScoreOptions(model=directory, prompt="ab", completion=("c", "de")))
    assert isinstance(found, verbs.Results)
    assert [(row.tokens, row.completion) for row in found.rows] == [(1, "c"), (2, "de")]
    assert all(row.logprob < 0 for row in found.rows)


def test_texts_become_vectors(directory: str, tmp_path: Path):
    data = _rows(tmp_path / "t.jsonl", [{"text": "one"}, {"text": "two words"}])
    config = verbs.EmbedOptions(model=directory, data=(data,), task="causal", out=tmp_path / "vectors")
    done = verbs.embed(config)
    assert isinstance(done, Artifact)
    vectors = np.load(tmp_path / "vectors" / "embeddings.npy")
    assert (vectors.shape, vectors.dtype) == ((2, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_wrong_settings_and_rows_are_named(directory: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="--top-p"):
        verbs.GenerateOptions(model=directory, top_p=2.0)
    with pytest.raises(UserError, match="nothing to continue"):
        verbs.generate(verbs.GenerateOptions(model=directory))
    data = _rows(tmp_path / "x.jsonl", [{"prompt": "a"}, {"label": "b"}])
    with pytest.raises(DataError, match=r"x\.jsonl row 2"):
        verbs.generate(verbs.GenerateOptions(model=directory, data=(data,)))
    with pytest.raises(UserError, match="absent: no such directory"):
        verbs.generate(verbs.GenerateOptions(model="absent", prompt=("a", "b"), dry_run=True))
    plan = verbs.generate(verbs.GenerateOptions(model=directory, prompt=("a", "b"), dry_run=True))
    assert isinstance(plan, DryRun)
    assert plan.rows_kept == 2
