"""Models, and a corpus in a directory of its own."""

import shutil
from pathlib import Path

import pytest

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
def here(place, models):
    for name in ("reference", "other", "new"):
        Path(name).symlink_to(models / name)
    written(Path("corpus"), texts(60))
