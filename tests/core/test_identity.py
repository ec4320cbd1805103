import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from maypole.core import identity as module
from maypole.core.artifact import Artifact
from maypole.core.identity import cache_dir, identity, plain


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class _Objective:
    beta: float = 0.1
    judge: object = None


class _Carrier:
    def __init__(self, **names: str) -> None:
        self.__dict__.update(names)


def _checkpoint(path: Path, weights: bytes = b"w", base: str | None = None) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(weights)
    (path / "tokenizer.json").write_text("{}")
    if base is None:
        (path / "config.json").write_text("{}")
    else:
        (path / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": base}))
    return path


def test_a_file_is_its_content_wherever_it_lies(tmp_path):
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    assert identity(tmp_path / "a") == identity(str(tmp_path / "b"))
    (tmp_path / "b").write_text("other")
    assert identity(tmp_path / "a") != identity(tmp_path / "b")


def test_a_large_file_is_its_size_its_time_and_its_two_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE_FILE_LIMIT", 3 << 20)
    file = tmp_path / "big"
    file.write_bytes(bytes(4 << 20))
    os.utime(file, (1000, 1000))
    before = identity(file)
    with file.open("r+b") as stream:
        stream.seek(2 << 20)
        stream.write(b"middle")
    os.utime(file, (1000, 1000))
    assert identity(file) == before
    os.utime(file, (1001, 1001))
    assert identity(file) != before


def test_a_checkpoint_is_config_tokenizer_and_weights_and_nothing_else(tmp_path):
    one, two = _checkpoint(tmp_path / "one"), _checkpoint(tmp_path / "two")
    (two / "README.md").write_text("words")
    assert identity(one) == identity(two)
    (two / "model.safetensors").write_bytes(b"x")
    assert identity(one) != identity(two)


def test_an_adapter_counts_its_local_base_by_content_not_by_path(tmp_path):
    _checkpoint(tmp_path / "base")
    _checkpoint(tmp_path / "moved")
    _checkpoint(tmp_path / "other", b"x")
    a = _checkpoint(tmp_path / "a", base=str(tmp_path / "base"))
    b = _checkpoint(tmp_path / "b", base=str(tmp_path / "moved"))
    c = _checkpoint(tmp_path / "c", base=str(tmp_path / "other"))
    assert identity(a) == identity(b) != identity(c)


def test_a_large_weight_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = _checkpoint(tmp_path / "m", bytes(2 << 20))
    weights = path / "model.safetensors"
    os.utime(weights, (1000, 1000))
    read = []
    real = module._hash
    monkeypatch.setattr(module, "_hash", lambda p: read.append(p.name) or real(p))
    first = identity(path)
    assert identity(path) == first
    assert read.count("model.safetensors") == 1
    weights.write_bytes(b"\1" * (2 << 20))
    assert identity(path) != first


def test_a_finished_artifact_is_its_key_and_an_unfinished_one_has_no_identity(tmp_path):
    artifact = Artifact.open(tmp_path / "out", kind="rows")
    assert identity(artifact.path) is None
    artifact.finish()
    assert identity(tmp_path / "out") == identity(artifact) == artifact.key


def test_live_objects_give_the_fingerprint_they_carry():
    assert identity(_Carrier(fingerprint="f1")) == "f1"
    assert identity(_Carrier(_fingerprint="f2")) == "f2"


def test_an_object_that_carries_nothing_has_no_identity_nor_has_what_contains_it():
    assert identity(lambda x: x) is None
    assert identity(object()) is None
    assert identity(_Objective(judge=lambda x: x)) is None
    assert identity({"a": [1, object()]}) is None


def test_a_dataclass_is_its_type_and_its_fields():
    assert identity(_Objective()) == identity(_Objective())
    assert identity(_Objective()) != identity(replace(_Objective(), beta=0.2))


def test_a_field_whose_text_happens_to_name_a_file_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = identity(_Objective(judge="dpo"))
    (tmp_path / "dpo").mkdir()
    assert identity(_Objective(judge="dpo")) == before


def test_a_function_in_a_file_is_the_files_content(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text("def f(): return 1\n")
    before = identity(f"{file}:f")
    file.write_text("def f(): return 2\n")
    assert identity(f"{file}:f") != before
    assert identity(plain) is not None


def test_a_corpus_folder_is_the_names_and_contents_of_its_files(tmp_path):
    folder = tmp_path / "c"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "a.txt").write_text("a")
    before = identity(folder)
    (folder / "d" / "a.txt").rename(folder / "d" / "b.txt")
    assert identity(folder) != before


def test_values_of_different_type_differ():
    found = [identity(v) for v in (1, 1.0, "1", True, None, b"1", [1], {"1": 1})]
    assert len(set(found)) == 8


def test_the_cache_lies_where_the_environment_says(tmp_path):
    assert cache_dir("rows", "x") == tmp_path / "cache" / "rows" / "x"
    assert (tmp_path / "cache" / "rows" / "x").is_dir()
