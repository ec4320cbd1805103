"""What a step frees is there for the next one."""

import ctypes
import platform
import resource

import pytest

from maypole.train.allocator import memory_kept

SIZE = 2**26
PAGES = SIZE // resource.getpagesize()


def _faults() -> int:
    """Pages that the system makes anew for 64 MB that are filled and freed, the third time."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array = libc.malloc(SIZE)
        ctypes.memset(array, 1, SIZE)
        libc.free(array)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_memory_is_kept_inside_and_given_back_after(monkeypatch: pytest.MonkeyPatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert _faults() > PAGES // 2
    with memory_kept():
        assert _faults() < PAGES // 10
    assert _faults() > PAGES // 2
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    with memory_kept():
        assert _faults() > PAGES // 2
