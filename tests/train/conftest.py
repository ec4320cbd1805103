import pytest
import torch

from maypole.core.progress import set_quiet


@pytest.fixture(autouse=True)
def _one_thread_own_cache_and_quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)
    set_quiet(True)
    yield
    set_quiet(False)
