import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from maypole.core.artifact import Artifact
from maypole.core.config import RunOptions, from_yaml, setting
from maypole.core.errors import ArtifactError, UserError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    Path("in.txt").write_text("rows")


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    learning_rate: float = setting(0.1)
    workers: int = setting(1, key=False)


def _open(out: str = "out", rate: float = 0.1, workers: int = 1, **more) -> Artifact:
    config = Config(learning_rate=rate, workers=workers)
    return Artifact.open(out, kind="demo", config=config, inputs={"data": "in.txt"}, **more)


def _finished(out: str = "out", rate: float = 0.1, text: str = "result", **more) -> Artifact:
    with _open(out, rate, **more) as artifact:
        (artifact.path / "result.txt").write_text(text)
        return artifact.finish({"score": 0.5})


def test_work_happens_beside_and_the_whole_result_takes_its_name():
    with _open() as artifact:
        assert artifact.path == Path("out.part")
        (artifact.checkpoints / "step-1").mkdir()
        artifact.finish({"score": 0.5}, rows=3)
    assert artifact.path == Path("out")
    assert not Path("out.part").exists()
    assert sorted(p.name for p in Path("out").iterdir()) == ["config.yaml", "manifest.json"]
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert (manifest["state"], manifest["metrics"], manifest["rows"]) == ("finished", {"score": 0.5}, 3)
    assert manifest["inputs"]["data"]["path"] == "../in.txt"
    assert manifest["files"][0]["path"] == "config.yaml"
    assert manifest["wall_seconds"] > 0
    assert manifest["peak_rss_bytes"] > 1_000_000
    assert from_yaml(Config, Path("out/config.yaml")) == Config()


def test_a_finished_result_with_the_same_key_is_returned_at_once():
    _finished()
    again = _open(workers=4)
    assert again.finished
    assert again.manifest["metrics"] == {"score": 0.5}
    assert not Path("out.part").exists()


def test_another_key_is_refused_and_what_differs_is_named():
    _finished()
    with pytest.raises(
        ArtifactError, match=r"out: holds the result of another command[\s\S]*learning_rate: 0.1 then, 0.2"
    ):
        _open(rate=0.2)
    Path("in.txt").write_text("changed")
    with pytest.raises(ArtifactError, match="input data: its content"):
        _open()


def test_unfinished_work_of_another_command_is_kept_and_its_command_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/maypole", "demo", "--learning-rate", "0.1"])
    _open().close()
    with pytest.raises(
        ArtifactError, match=r"continue that one: maypole demo --learning-rate 0\.1; or drop it with --force"
    ):
        _open(rate=0.2)
    assert _open().resumed


def test_force_keeps_the_old_result_until_the_new_one_is_whole():
    _finished(text="old")
    with _open(rate=0.2, force=True) as artifact:
        (artifact.path / "result.txt").write_text("new")
        assert Path("out/result.txt").read_text() == "old"
        artifact.finish()
    assert Path("out/result.txt").read_text() == "new"
    assert sorted(p.name for p in Path().iterdir() if p.name.startswith("out")) == ["out"]


def test_force_drops_unfinished_work_of_another_command():
    with _open() as artifact:
        (artifact.path / "half.txt").write_text("half")
    with _open(rate=0.2, force=True) as artifact:
        assert not (artifact.path / "half.txt").exists()
        assert not artifact.resumed


@pytest.mark.parametrize("cut", ["before the old one moves", "before the new one takes its place"])
def test_a_kill_while_replacing_a_result_loses_neither(cut, monkeypatch):
    _finished(text="old")
    real = os.rename
    calls = []

    def rename(source, target):
        calls.append(source)
        if len(calls) == (1 if cut == "before the old one moves" else 2):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            _finished(rate=0.2, text="new", force=True)
    again = _open(rate=0.2, force=True)
    assert again.finished
    assert Path("out/result.txt").read_text() == "new"
    assert sorted(p.name for p in Path().iterdir() if p.name.startswith("out")) == ["out"]


def test_files_that_maypole_did_not_make_are_never_deleted():
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="is a directory that maypole did not make"):
        _open(force=True)
    Path("out/thesis.txt").unlink()
    _finished()
    assert Path("out/result.txt").exists()


def test_a_file_in_the_way_is_named():
    with pytest.raises(ArtifactError, match=r"in\.txt: is a file"):
        _open("in.txt")
    with pytest.raises(ArtifactError, match=r"in\.txt/x\.part: lies below a file"):
        _open("in.txt/x")


def test_a_directory_that_cannot_be_written_is_named(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"out\.part: cannot be written\n  hint: a directory you may write to"):
        _open()


def test_a_second_opener_is_told_who_works_on_it():
    with _open(), pytest.raises(ArtifactError, match=rf"another process is working on it \(pid {os.getpid()}\)"):
        _open()


def test_the_plan_is_made_once_and_read_ever_after():
    with _open() as artifact:
        assert artifact.plan(lambda: {"steps": 7}) == {"steps": 7}
    with _open() as artifact:
        assert artifact.plan(lambda: {"steps": 8}) == {"steps": 7}
        artifact.finish()
    assert Artifact.load("out").plan(lambda: {"steps": 9}) == {"steps": 7}


@pytest.mark.parametrize(("error", "state"), [(ValueError("bad row"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_an_exception_leaves_the_work_and_its_state(error, state):
    def fail() -> None:
        with _open() as artifact:
            artifact.metrics.log(1, loss=2.0)
            raise error

    with pytest.raises(type(error)):
        fail()
    manifest = json.loads(Path("out.part/manifest.json").read_text())
    assert manifest["state"] == state
    assert manifest.get("error") == ("bad row" if state == "failed" else None)
    with _open() as artifact:
        assert artifact.metrics.read() == [{"step": 1, "loss": 2.0}]
        artifact.finish()
    assert "error" not in Artifact.load("out").manifest


def test_a_child_is_final_when_whole_though_its_parent_is_not():
    with _open() as parent, parent.child("rows", kind="rows", seed=1) as child:
        (child.path / "a.txt").write_text("a")
        child.finish()
    with _open() as parent:
        again = parent.child("rows", kind="rows", seed=1)
        assert again.finished
        assert again.key == child.key
        parent.finish()
    whole = Artifact.load("out")
    assert whole.manifest["children"] == {"rows": child.key}
    assert [f["path"] for f in whole.manifest["files"]] == ["config.yaml"]
    assert whole.child("rows", kind="rows", seed=1).path == Path("out/rows")
    with pytest.raises(ArtifactError, match="has no part called 'other'"):
        whole.child("other", kind="rows")


def test_a_whole_with_an_unfinished_part_cannot_be_finished():
    with _open() as parent:
        parent.child("rows", kind="rows")
        with pytest.raises(ArtifactError, match=r"rows\.part: is not finished"):
            parent.finish()


def test_a_result_of_something_without_identity_is_never_continued_or_reused():
    def make() -> Artifact:
        return Artifact.open("out", kind="demo", inputs={"reward": lambda x: x})

    with make() as first:
        (first.path / "half.txt").write_text("half")
    with make() as second:
        assert not (second.path / "half.txt").exists()
        assert second.key != first.key
        second.finish()
    assert second.manifest["reusable"] is False
    with pytest.raises(ArtifactError, match=r"input reward: cannot be compared"):
        make()


def test_loading_what_is_not_a_finished_result_says_why():
    with pytest.raises(ArtifactError, match="nothing: does not exist"):
        Artifact.load("nothing")
    Path("empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty: has no manifest\.json"):
        Artifact.load("empty")
    _open().close()
    with pytest.raises(ArtifactError, match="out: is not finished\n  hint: continue with: maypole"):
        Artifact.load("out")
    Path("empty/manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json: is not valid JSON"):
        Artifact.load("empty")


def test_a_manifest_names_no_place_beyond_what_the_user_typed(tmp_path):
    far = tmp_path.parent / "far"
    far.mkdir(exist_ok=True)
    (far / "secret-place.txt").write_text("x")
    deep = Path("a/b/c/d")
    with Artifact.open(deep, kind="demo", inputs={"near": "in.txt", "far": far / "secret-place.txt"}) as artifact:
        artifact.finish()
    text = (deep / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert artifact.manifest["inputs"]["near"]["path"] == "../../../../in.txt"
    assert artifact.manifest["inputs"]["far"]["path"] == "secret-place.txt"


def test_what_libraries_log_during_a_run_is_kept_beside_the_result():
    log = logging.getLogger("some.library")
    with _open() as artifact:
        log.warning("took the slow path")
        artifact.finish()
    log.warning("afterwards")
    text = Path("out/run.log").read_text()
    assert "WARNING some.library: took the slow path" in text
    assert "afterwards" not in text
    assert "run.log" not in [f["path"] for f in artifact.manifest["files"]]


def test_the_key_counts_kind_settings_seed_and_inputs_but_not_how_the_run_works():
    keys = [
        Artifact.open(f"o{i}", kind=kind, config=Config(learning_rate=rate, workers=i), seed=seed).key
        for i, (kind, rate, seed) in enumerate([("a", 1, 0), ("a", 1.0, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1)])
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_wrong_input_found_before_any_work_leaves_nothing_in_the_way_of_the_right_command():
    def fail() -> None:
        with _open() as artifact:
            artifact.plan(lambda: {"steps": 7})
            raise UserError("no such column", "in.txt")

    with pytest.raises(UserError):
        fail()
    assert not Path("out.part").exists()
    with _open(rate=0.2):
        pass
    assert Path("out.part").is_dir()


def test_wrong_input_found_in_the_middle_of_the_work_leaves_it():
    def fail() -> None:
        with _open() as artifact:
            artifact.metrics.log(1, loss=2.0)
            raise UserError("the loss is nan")

    with pytest.raises(UserError):
        fail()
    assert _open().metrics.read() == [{"step": 1, "loss": 2.0}]


def test_what_a_command_would_find_is_told_and_nothing_changes():
    def find(rate: float, **more) -> Artifact | None:
        config = Config(learning_rate=rate)
        return Artifact.find("out", kind="demo", config=config, inputs={"data": "in.txt"}, **more)

    assert find(0.1) is None
    assert not list(Path().glob("out*"))
    _open().close()
    begun = find(0.1)
    assert begun is not None
    assert (begun.path, begun.finished) == (Path("out.part"), False)
    with pytest.raises(ArtifactError, match=r"out\.part: holds unfinished work of another command"):
        find(0.2)
    assert find(0.2, force=True) is None
    _finished()
    done = find(0.1)
    assert done is not None
    assert (done.path, done.finished) == (Path("out"), True)
    with pytest.raises(ArtifactError, match=r"out: holds the result of another command"):
        find(0.2)
