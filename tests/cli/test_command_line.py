import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maypole import catalogue
from maypole.cli.commands import COMMANDS
from maypole.cli.main import run
from maypole.core.artifact import Artifact
from maypole.core.progress import set_quiet
from tests.cli.dummy_verbs import TABLE


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    set_quiet(False)


@pytest.fixture
def maypole(capsys):
    def maypole(line: str) -> tuple[int, str, str]:
        code = run(line.split(), TABLE)
        return code, *capsys.readouterr()

    return maypole


def test_a_command_gets_its_flags_and_shows_its_result(maypole):
    code, out, err = maypole("train sft --data a.jsonl b.parquet --mix 3 1 --peft.r 4 --out o")
    assert code == 0
    seen = "(('a.jsonl', 'b.parquet'), (3.0, 1.0), Peft(type='lora', r=4, options={}))"
    assert Path("o/seen.txt").read_text() == seen
    assert out.split() == ["loss", "1.5", "result", "o"]
    assert err == "train: 2 steps\ntrain: 2 steps in 0:00\n"


def test_json_is_one_document_on_stdout_for_results(maypole):
    _, out, _ = maypole("train sft --data a --out o --json --quiet")
    assert json.loads(out) == {
        "path": "o",
        "kind": "demo",
        "key": Artifact.load("o").key,
        "metrics": {"loss": 1.5},
    }
    _, out, err = maypole("evaluate tasks --json")
    assert json.loads(out) == {"name": "n", "score": 0.75, "rows": [{"item": "a", "value": 1}], "holds": True}
    assert err == ""


def test_json_is_one_document_on_stdout_for_errors_too(maypole):
    code, out, _ = maypole("train sft --data a --out o --fail data --json")
    assert code == 2
    assert json.loads(out)["error"] == {
        "type": "DataError",
        "message": 'a.jsonl row 2, field "text": expected a string, found null\n  hint: fix it',
        "exit_code": 2,
        "what": "expected a string, found null",
        "where": 'a.jsonl row 2, field "text"',
        "expected": "fix it",
    }


def test_a_missed_aim_exits_1(maypole):
    assert maypole("evaluate tasks --aim 0.7")[0] == 0
    code, out, _ = maypole("evaluate tasks --aim 0.8")
    assert code == 1
    assert "holds  no" in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "train sft --data a --out o --learning-rate -1",
            "--learning-rate: -1.0 does not work\n  hint: accepted: a num",
        ),
        ("train sft --data a --out o --seed 1.5", "--seed: 1.5 does not work\n  hint: accepted: a whole number"),
        ("train sft --data a", "--out: is required"),
        ("train sft --out o", "--data"),
        ("train sft --data a --learning-rte 1", "--learning-rte"),
        ("train sft --data a --learning-rate x", "--learning-rate"),
        ("train sfd", "train has no command 'sfd'\n  hint: one of: sft"),
        ("trian sft", "no command 'trian'\n  hint: one of: train"),
        ("curate prune", "curate has no command 'prune'\n  hint: no command of it is built yet"),
        ("train sft --config no.yaml", "--config no.yaml: does not exist"),
    ],
)
def test_wrong_input_exits_2_with_one_paragraph_that_names_it(maypole, line, said):
    code, out, err = maypole(line)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_of_wrong_input(maypole):
    assert "Traceback" in maypole("train sft --data a --out o --fail data --debug")[2]


def test_a_fault_of_ours_exits_3_and_keeps_its_traceback_beside_the_output(maypole):
    code, _, err = maypole("train sft --data a --out o --fail bug")
    assert code == 3
    assert "a fault of maypole's own: RuntimeError: broken [red]inside\\x1b[31m\n  traceback: o.traceback.txt" in err
    text = Path("o.traceback.txt").read_text()
    assert text.startswith("$ maypole train sft --data a --out o --fail bug\nTraceback")


@pytest.mark.parametrize(("fail", "said"), [("disk", "no space left to write"), ("memory", "not enough memory")])
def test_a_machine_too_small_exits_3_and_says_what_is_missing(maypole, fail, said):
    code, _, err = maypole(f"train sft --data a --out o --fail {fail}")
    assert code == 3
    assert f"error: {said}" in err
    assert "traceback" not in err
    assert json.loads(Path("o.part/manifest.json").read_text())["state"] == "failed"


def test_a_disk_that_fills_up_during_a_run_exits_3_and_leaves_no_result(tmp_path):
    program = """
import resource, sys
from maypole.cli.main import run
from tests.cli.dummy_verbs import TABLE
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(run("train sft --data a --out o --fail big".split(), TABLE))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert "no space left to write (File too large)" in found.stderr
    assert not (tmp_path / "o").exists()
    assert json.loads((tmp_path / "o.part" / "manifest.json").read_text())["state"] == "failed"


def test_an_interrupt_exits_130_and_prints_the_command_that_continues(maypole):
    code, _, err = maypole("train sft --data a --out o --fail interrupt")
    assert code == 130
    assert err.endswith("stopped. Continue:  maypole train sft --data a --out o --fail interrupt\n")


def test_a_config_file_fills_flags_and_the_command_line_goes_first(maypole):
    Path("c.yaml").write_text("data: [x, y]\nlearning_rate: 0.5\npeft:\n  r: 2\nout: o\n")
    assert maypole("train sft --config c.yaml --data z")[0] == 0
    assert Path("o/seen.txt").read_text() == "(('z',), (), Peft(type='lora', r=2, options={}))"
    assert Artifact.load("o").manifest["config"]["learning_rate"] == 0.5


def test_an_open_mapping_may_hold_mappings_in_a_file_and_on_the_command_line(maypole):
    Path("c.yaml").write_text("data: [x]\nout: o\npeft:\n  options:\n    rank: {q: 4, k: 2}\n    rs: true\n")
    assert maypole("train sft --config c.yaml")[0] == 0
    assert Artifact.load("o").manifest["config"]["peft"]["options"] == {"rank": {"q": 4, "k": 2}, "rs": True}
    assert maypole('train sft --data x --out p --peft.options.rank {"q":4,"k":2} --peft.options.rs true')[0] == 0
    assert Artifact.load("p").key == Artifact.load("o").key


def test_the_config_that_a_result_keeps_makes_it_again(maypole):
    maypole("train sft --data a b --mix 3 1 --learning-rate 0.25 --out o")
    assert maypole("train sft --config o/config.yaml --out again")[0] == 0
    assert Artifact.load("again").key == Artifact.load("o").key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rte: 1\n", "learning_rte"),
        ("peft:\n  rank: 3\n", "rank"),
        ("train:\n  learning_rate: 3\n", "train"),
        ("[1, 2]\n", "c.yaml: expected a mapping of flags, found list"),
        ("a: [\n", "c.yaml: not valid YAML"),
    ],
)
def test_a_config_file_with_a_mistake_exits_2_and_names_it(maypole, text, said):
    Path("c.yaml").write_text(text)
    code, _, err = maypole("train sft --data a --out o --config c.yaml")
    assert code == 2
    assert said in err
    assert not Path("o").exists()


def test_dry_run_shows_the_plan_and_writes_nothing(maypole):
    code, out, _ = maypole("train sft --data a --out o --dry-run")
    assert code == 0
    assert out.split() == ["rows_kept", "2", "rows_dropped", "too", "long", "1", "steps", "7"]
    assert not list(Path().glob("o*"))


def test_a_room_may_have_a_command_of_its_own(maypole):
    assert json.loads(maypole("serve my/model --port 1 --json")[1]) == {
        "model": "my/model",
        "port": 1,
        "where": "model",
    }
    assert maypole("serve --help")[1].startswith("Usage: maypole serve MODEL [OPTIONS]")
    assert "By itself: serve a model. See: maypole serve --help." in maypole("serve")[1]


def test_a_room_s_own_command_and_the_others_name_each_other(capsys):
    assert run(["serve"]) == run(["serve", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "By itself: serve a model and its adapters over HTTP" in out
    assert "Beside it: maypole serve program." in out


def test_the_top_help_names_every_room_and_fits_80_columns(maypole):
    _, out, _ = maypole("--help")
    assert out == maypole("")[1]
    assert all(room in out for room in catalogue.ROOMS)
    assert max(map(len, out.splitlines())) <= 80


def test_help_of_a_verb_shows_its_docstring_and_its_flags(maypole):
    code, out, _ = maypole("train sft --help")
    assert code == 0
    assert "Longer words." in out
    assert "--peft.r" in out
    assert "rows to learn from" in out
    assert "--config." not in out


def test_help_of_a_verb_groups_its_own_flags_those_of_the_model_and_those_of_the_run(maypole):
    _, out, _ = maypole("train sft --help")
    assert out.startswith("Usage: maypole train sft ")
    places = [out.rindex(name) for name in (" Parameters ", "--data", "--mix", " Model ", "--dtype", " Run ", "--seed")]
    assert places == sorted(places)
    assert "Of every command: --config FILE.yaml" in out


def test_help_shows_training_flags_under_the_name_that_the_command_takes_them_by(capsys):
    assert run(["align", "dpo", "--help"]) == 0
    out = capsys.readouterr().out
    own, shared = out.index("--rpo-alpha"), out.index(" Training --train.NAME ")
    assert own < shared < out.index("--train.weight-decay")


def test_help_leaves_out_defaults_and_opposites_that_say_nothing(capsys):
    assert run(["align", "gap", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--no-force" not in out
    assert "--both-orders --no-both-orders ask a judge" in out
    assert "[default: 0.03 0.1 0.3 1.0]" in out
    assert not any(f"[default: {nothing}]" in out for nothing in ("()", "{}", "False"))


def test_help_of_a_room_without_commands_says_so(capsys):
    assert run(["retrieve", "--help"]) == 0
    assert "No command of it is built yet; see: maypole systems." in capsys.readouterr().out


def test_help_of_a_room_lists_its_verbs_without_importing_them(maypole):
    assert "Fine-tune on conversations." in maypole("train --help")[1]
    assert "Fine-tune on conversations." in maypole("train")[1]
    assert run(["train"], {("train", "x"): ("no.such.module:x", "A line.")}) == 0


def test_systems_lists_all_and_env_names_no_place(capsys):
    assert run(["systems", "--json"]) == 0
    assert [s["id"] for s in json.loads(capsys.readouterr().out)] == [s.id for s in catalogue.SYSTEMS]
    assert run(["env"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert os.sep not in out


def test_every_command_is_described_by_the_first_line_of_its_docstring():
    for path, (target, line) in {**COMMANDS, **TABLE}.items():
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        assert (function.__doc__ or "").strip().splitlines()[0] == line, path


def test_help_of_every_command_loads_no_torch():
    program = """
import io, sys, contextlib
from maypole.cli.commands import COMMANDS
from maypole.cli.main import run
for path in [(), *COMMANDS, *{(p[0],) for p in COMMANDS}]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run([*path, "--help"]) == 0, path
    assert out.getvalue(), path
print(sorted({"torch", "transformers", "datasets", "peft", "matplotlib", "scipy"} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("[]\n", "")
