import importlib.util
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from maypole.core.artifact import Artifact
from maypole.core.errors import ArtifactError, ConfigError, DataError, MaypoleError, MissingExtra
from maypole.core.progress import set_quiet
from maypole.core.shards import map_shards
from tests.core.shard_worker import base, nothing, run, times

ROOT = Path(__file__).parents[2]
SHARDS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(autouse=True)
def _quiet():
    set_quiet(True)
    yield
    set_quiet(False)


def content(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((directory / "part").iterdir())}


def lines(log: Path) -> list[str]:
    return sorted(log.read_text().split())


def test_every_shard_becomes_one_file_and_results_stand_in_the_order_of_the_shards(tmp_path):
    artifact = run(tmp_path / "o", SHARDS, tmp_path / "log")
    assert content(tmp_path / "o") == {f"{i:03}.txt": b"%d\n" % (7 * s) for i, s in enumerate(SHARDS)}
    assert artifact.manifest["metrics"] == {"sum": 7 * sum(SHARDS)}
    assert lines(tmp_path / "log") == sorted([*map(str, SHARDS), "setup"])
    assert not (tmp_path / "o" / "checkpoints").exists()


def test_two_processes_give_the_bytes_of_one(tmp_path):
    run(tmp_path / "one", SHARDS, tmp_path / "log")
    two = run(tmp_path / "two", SHARDS, tmp_path / "log2", workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert two.manifest["files"] == Artifact.load(tmp_path / "one").manifest["files"]
    assert lines(tmp_path / "log2").count("setup") == 2


def test_what_is_made_is_not_made_again_and_errors_come_from_where_they_arose(tmp_path):
    wrong = [3, 1, -4, 1]
    for workers in (1, 2):
        out, log = tmp_path / f"o{workers}", tmp_path / f"log{workers}"
        with pytest.raises(DataError, match="numbers row 4: negative") as found:
            run(out, wrong, log, workers=workers)
        assert found.value.row == 4
        part = out.with_name(out.name + ".part")
        before = len(list((part / "checkpoints" / "shards").iterdir()))
        assert 1 <= before <= 3
        log.unlink()
        run(out, [3, 1, 4, 1], log)  # the same key: what a shard is belongs to the shard's own
        made = [line for line in lines(log) if line != "setup"]
        assert len(made) == 4 - before
        assert "4" in made
        assert [path.name for path in sorted((out / "part").iterdir())] == [f"{i:03}.txt" for i in range(4)]


def test_a_shard_that_changed_is_made_again(tmp_path):
    with pytest.raises(DataError):
        run(tmp_path / "o", [3, 1, -4], tmp_path / "log")
    (tmp_path / "log").unlink()
    run(tmp_path / "o", [3, 2, 4], tmp_path / "log")
    assert lines(tmp_path / "log") == ["2", "4", "setup"]
    assert content(tmp_path / "o")["001.txt"] == b"14\n"


def test_with_nothing_left_to_do_nothing_is_set_up(tmp_path):
    log = tmp_path / "log"
    with Artifact.open(tmp_path / "o", kind="numbers", config={"base": 7}) as artifact:
        for _ in range(2):
            map_shards(partial(base, 7, log), partial(times, log=log), {"part/a": 2}, out=artifact, title="t")
    assert lines(log) == ["2", "setup"]


def test_a_worker_that_is_killed_is_an_error_and_the_same_command_goes_on(tmp_path):
    with pytest.raises(MaypoleError, match=r"a worker died while it made part/004.txt: its exit code is -9"):
        run(tmp_path / "o", SHARDS, tmp_path / "log", workers=2, die_at=5)
    run(tmp_path / "o", SHARDS, tmp_path / "log", workers=2, die_at=5)
    run(tmp_path / "plain", SHARDS, tmp_path / "log2")
    assert content(tmp_path / "o") == content(tmp_path / "plain")
    made = [line for line in lines(tmp_path / "log") if line != "setup"]
    assert len(made) <= len(SHARDS) + 1  # the other worker's last file may not have been noted


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, how):
    words = [sys.executable, "-m", "tests.core.shard_worker", str(tmp_path / "o")]
    parent = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    part = tmp_path / "o.part"
    while len(began := list(part.glob("began-*"))) < 2:
        assert parent.poll() is None
    os.kill(parent.pid, how)
    parent.wait()
    workers = [int(p.name.rsplit("-", 1)[1]) for p in began]
    while any(Path(f"/proc/{pid}/stat").exists() and _lives(pid) for pid in workers):
        pass
    assert not (tmp_path / "o.part" / "a").exists()
    Artifact.open(tmp_path / "o", kind="slow").close()  # nobody holds the directory


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_shards_without_identity_and_workers_below_one_are_refused(tmp_path):
    with Artifact.open(tmp_path / "o", kind="numbers") as artifact:
        with pytest.raises(ValueError, match="shard a: a function has no identity"):
            map_shards(nothing, nothing, {"a": lambda: 0}, out=artifact, title="t")  # pyright: ignore
        with pytest.raises(ConfigError, match="--workers"):
            map_shards(nothing, nothing, {}, out=artifact, title="t", workers=0)  # pyright: ignore


def test_another_command_does_not_take_the_files(tmp_path):
    with pytest.raises(DataError):
        run(tmp_path / "o", [1, -1], tmp_path / "log")
    with pytest.raises(ArtifactError, match="base: 7 then, 8 now"):
        Artifact.open(tmp_path / "o", kind="numbers", config={"base": 8})


def test_ray_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'maypole\[ray\]'"):
        run(tmp_path / "o", [1], tmp_path / "log", ray="local")


def test_a_ray_cluster_gives_the_bytes_of_one_process_though_a_worker_is_killed(tmp_path, capsys):
    assert importlib.util.find_spec("ray"), "the test extra installs it"
    run(tmp_path / "plain", SHARDS, tmp_path / "log")
    on_ray = run(tmp_path / "o", SHARDS, tmp_path / "log2", workers=2, ray="local", die_at=5)
    assert (tmp_path / "died").exists()
    assert capsys.readouterr().out == ""
    assert content(tmp_path / "o") == content(tmp_path / "plain")
    assert on_ray.manifest["files"] == Artifact.load(tmp_path / "plain").manifest["files"]
    with pytest.raises(ConfigError, match="--ray"):
        run(tmp_path / "nowhere", [3], tmp_path / "log2", ray="127.0.0.1:1")


def test_a_cluster_that_runs_already_sees_paths_and_tells_errors_as_one_process_does(tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # what is run there must be on every machine of a cluster
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        monkeypatch.chdir(tmp_path)
        run(Path("plain"), SHARDS, Path("log"))
        run(Path("o"), SHARDS, Path("log2"), workers=2, ray="local")
        assert content(Path("o")) == content(Path("plain"))
        program = "import sys; from pathlib import Path; from tests.core.shard_worker import run\n"
        program += f"run(Path('far'), {SHARDS}, Path('log3'), workers=2, ray=sys.argv[1])"
        address = ray.get_runtime_context().gcs_address
        ran = subprocess.run([sys.executable, "-c", program, address], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert content(Path("far")) == content(Path("plain"))
        with pytest.raises(DataError, match="numbers row 4: negative"):
            run(Path("wrong"), [3, -4], Path("log2"), workers=2, ray="local")
        with pytest.raises(FileNotFoundError, match="none/log"):  # where the setup writes
            run(Path("unset"), [3], Path("none/log"), ray="local")
    finally:
        ray.shutdown()
