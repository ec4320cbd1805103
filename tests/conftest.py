"""What all tests share; and a place to run commands in, and a way to run them."""

import gc
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

# Two workers share the cores; and what is forked by a test would wait for ever for the threads that stayed behind, as
# OpenMP's do. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from maypole.cli.main import run
from maypole.core.progress import set_quiet


def pytest_collection_finish() -> None:
    """What is imported by now stays for good, and garbage is no longer looked for in it: every training run collects
    garbage, which takes it half a second among all that these libraries are made of."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that earlier versions computed is found again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, with a cache of its own; what a command changes in this process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    monkeypatch.setenv("COLUMNS", "160")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers, root.level = handlers, level
    set_quiet(False)


@pytest.fixture
def maypole(place: Path, capsys: pytest.CaptureFixture[str], request) -> Callable[[str], tuple[int, str, str]]:
    """Runs the words of the test module's `COMMAND` and of a line -> exit code, stdout, stderr."""
    command = shlex.split(request.module.COMMAND)

    def maypole(line: str) -> tuple[int, str, str]:
        code = run([*command, *shlex.split(line)])
        return code, *capsys.readouterr()

    return maypole
