import pytest

from maypole.core.progress import set_quiet


@pytest.fixture(autouse=True)
def _own_cache_and_quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)
