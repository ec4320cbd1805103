"""Models, a corpus and the command in a directory of their own."""

import logging
import shlex
import shutil
from pathlib import Path

import pytest

from maypole.cli.main import run
from maypole.core.progress import set_quiet
from maypole.models import save
from tests.curate.curate_fixtures import texts, written
from tests.engine.engine_fixtures import lm_of


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference`, `other` of other weights, and `new` that has a config and a tokenizer only."""
    folder = tmp_path_factory.mktemp("models")
    save(lm_of(), folder / "reference")
    save(lm_of(seed=1), folder / "other")
    shutil.copytree(folder / "reference", folder / "new", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def here(tmp_path, models, monkeypatch):
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
