"""The command: its table, its JSON, and what it says to bad input."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from maypole.cli.commands import COMMANDS
from maypole.cli.main import run
from maypole.core.statistics import Interval
from maypole.tour.report import Measure, Report
from maypole.tour.verbs import TourResult

FINISHED = Report(
    title="maypole tour", model="village-4M-prose", corpus="Python's documentation", date="2026-01-01", seconds=312.4,
    peak_rss=1, state="complete",
    measures=(
        Measure(
            name="corpus perplexity", before=56.77, after=20.63, interval=Interval(-38.1, -34.2, -36.14), n=282,
            better="lower",
        ),
        Measure(
            name="old tasks", before=0.99, after=0.97, interval=Interval(-0.04, 0.01, -0.02), n=200, better="higher"
        ),
    ),
)  # fmt: skip
TABLE = """\
done in 5:12        before after        change [95 % CI]   n
  corpus perplexity  56.77 20.63 −36.14 [−38.10, −34.20] 282 better
  old tasks           0.99  0.97    −0.02 [−0.04, +0.01] 200 no clear change
verdict of 2 measures 1 better, 1 no clear change, 0 worse
report  run/report.html
next    maypole engine generate --model run/03-align --prompt 'Return the'
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal_and_ends_with_a_command(columns, monkeypatch, capsys):
    from maypole.cli.show import show

    monkeypatch.setenv("COLUMNS", str(columns))
    show(TourResult(FINISHED, Path("run")), as_json=False)
    out = capsys.readouterr().out
    assert "\n".join(line.rstrip() for line in out.splitlines()) + "\n" == TABLE


def test_the_next_command_is_one_that_exists():
    words = shlex.split(TourResult(FINISHED, Path("run")).next)
    assert words[0] == "maypole"
    assert tuple(words[1:3]) in COMMANDS
    assert run([*words[1:3], "--help"]) == 0


@pytest.mark.usefixtures("_fixed_rates")
def test_json_is_alone_on_stdout_and_stderr_says_each_stage_before_it_starts(
    tmp_path, corpus, model, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    line = ["tour", "--model", str(model), "--corpus", str(corpus), "--minutes", "0.05", "--own-data-only", "--json"]
    assert run(line) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    lines = said.err.splitlines()
    assert any(line.startswith("curate: 50 documents to choose from, about 0:") for line in lines)
    begun = next(i for i, line in enumerate(lines) if line.startswith("adapt: "))
    assert " steps, about 0:0" in lines[begun]
    assert any(line.startswith("train: ") for line in lines[begun:])
    assert any(line.startswith(" ok  adapt") for line in lines)
    assert found["tuned"] == "run/02-adapt"
    assert found["report"] == "run/report.html"
    assert found["verdict"].startswith("of 2 measures")
    assert [stage["stage"] for stage in found["stages"]] == ["curate", "adapt", "serve", "evaluate"]
    first = found["measures"][0]
    assert first["measure"] == "corpus perplexity"
    assert first["ci95"][0] <= first["change"] == pytest.approx(first["after"] - first["before"])
    assert run([*shlex.split(found["next"])[1:], "--max-tokens", "3", "--json"]) == 0


def bad(folder: Path, kind: str) -> Path:
    """A corpus that cannot be used."""
    path = folder / "corpus"
    path.mkdir()
    if kind == "binary":
        (path / "a.txt").write_bytes(b"words\0words" * 2000)
    elif kind == "latin-1":
        (path / "a.txt").write_bytes("Häuser ".encode("latin-1") * 3000)
    elif kind == "malformed":
        (path / "a.jsonl").write_text('{"text": "words"}\n{"text": "wor\n')
    elif kind == "too small":
        (path / "a.txt").write_text("words")
    return path if kind != "missing" else path / "nowhere"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "corpus"),
        ("missing", "nowhere"),
        ("binary", "a.txt: this is no text"),
        ("latin-1", "a.txt"),
        ("malformed", "a.jsonl row 2"),
        ("too small", "at least 10,000 characters"),
    ],
)
def test_a_bad_corpus_is_named_and_nothing_is_left_behind(kind, said, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["tour", "--corpus", str(bad(tmp_path, kind)), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "hint: " in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: [p.unlink() for p in path.glob("*token*")], "it has no tokenizer"),
        (lambda path: (path / "config.json").write_text('{"model_type": "unheard-of"}'), "'unheard-of'"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "is an adapter"),
    ],
)
def test_a_bad_model_is_named_and_nothing_is_left_behind(break_it, said, tmp_path, corpus, model, capsys):
    broken = tmp_path / "model"
    shutil.copytree(model, broken)
    break_it(broken)
    out = tmp_path / "run"
    assert run(["tour", "--model", str(broken), "--corpus", str(corpus), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "hint: " in error
    assert not out.exists()
