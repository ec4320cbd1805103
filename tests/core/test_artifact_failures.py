"""What survives a kill, a full disk and a second process, tried on real processes."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maypole.core.artifact import Artifact

WORKER = Path(__file__).with_name("artifact_worker.py")
VARIES = {"wall_seconds", "cpu_seconds", "peak_rss_bytes", "finished_at"}


@pytest.fixture
def start(tmp_path, monkeypatch):
    def start(folder: Path, pause: float = 0.0, **more) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        (folder / "in.txt").write_text("rows")
        env = {**os.environ, "PAUSE": str(pause), "MAYPOLE_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, str(WORKER), str(folder)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)

    return start


def _manifest(path: Path) -> dict:
    return {k: v for k, v in json.loads((path / "manifest.json").read_text()).items() if k not in VARIES}


def _wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        os.sched_yield()


def test_killed_at_random_moments_the_same_command_ends_with_the_same_result(start, tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    draw = random.Random(0)
    for trial in range(3):
        folder = tmp_path / f"killed-{trial}"
        part = folder / "out.part"
        for _ in range(3):
            child = start(folder, pause=0.004)
            units = draw.randrange(1, 12)
            _wait_for(lambda: (part / f"unit-{units}.bin").exists() or child.poll() is not None)  # noqa: B023
            child.kill()
            child.wait()
            assert (folder / "out").exists() == (not part.exists())
        assert start(folder).wait() == 0
        whole, again = tmp_path / "whole" / "out", folder / "out"
        assert _manifest(whole) == _manifest(again)
        assert _manifest(whole / "part") == _manifest(again / "part")
        for entry in _manifest(whole)["files"]:
            assert (whole / entry["path"]).read_bytes() == (again / entry["path"]).read_bytes()
        assert (whole / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
        assert sorted(p.name for p in folder.iterdir()) == ["in.txt", "out"]


def test_a_disk_that_is_full_leaves_nothing_half_written(start, tmp_path):
    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    child = start(tmp_path / "w", preexec_fn=starve)
    said, _ = child.communicate()
    assert child.returncode != 0
    assert "File too large" in said
    assert not (tmp_path / "w" / "out").exists()
    assert not list((tmp_path / "w" / "out.part").glob("unit-*"))
    assert json.loads((tmp_path / "w" / "out.part" / "manifest.json").read_text())["state"] == "failed"
    assert start(tmp_path / "w").wait() == 0
    assert Artifact.load(tmp_path / "w" / "out").finished


def test_of_two_processes_on_one_output_the_second_is_told_and_the_first_goes_on(start, tmp_path):
    first = start(tmp_path / "w", pause=0.2)
    _wait_for(lambda: (tmp_path / "w" / "out.part" / "unit-0.bin").exists())
    second = start(tmp_path / "w")
    said, _ = second.communicate()
    assert second.returncode != 0
    assert f"another process is working on it (pid {first.pid})" in said
    assert first.wait() == 0
    assert Artifact.load(tmp_path / "w" / "out").finished


def test_an_interrupt_keeps_the_work(start, tmp_path):
    child = start(tmp_path / "w", pause=0.2)
    _wait_for(lambda: (tmp_path / "w" / "out.part" / "checkpoints" / "001.txt").exists())
    child.send_signal(signal.SIGINT)
    child.wait()
    part = tmp_path / "w" / "out.part"
    assert json.loads((part / "manifest.json").read_text())["state"] == "interrupted"
    assert (part / "unit-0.bin").exists()
