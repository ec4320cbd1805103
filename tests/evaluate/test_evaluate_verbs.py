import json
from pathlib import Path

import pytest

from maypole.cli.app import parse
from maypole.core.artifact import Artifact
from maypole.core.config import DryRun
from maypole.core.errors import ConfigError, DataError, UserError
from maypole.evaluate import perplexity, verbs
from maypole.models.saving import save
from tests.engine.engine_fixtures import lm_of, with_adapters

JUDGE = "def longer(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save(lm_of(), path)
    return str(path)


def _rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_perplexity_is_reported_and_kept_with_its_documents(directory: str, tmp_path: Path):
    texts = ["some text", "other", "the third document"]
    data = _rows(tmp_path / "t.jsonl", [{"text": t} for t in texts])
    report = verbs.perplexity(verbs.PerplexityOptions(model=directory, data=(data,)))
    assert isinstance(report, verbs.PerplexityReport)
    expected = perplexity(lm_of(), texts)
    assert report.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert (report.documents, report.tokens) == (3, sum(map(len, texts)))
    config = verbs.PerplexityOptions(model=directory, data=(data,), out=tmp_path / "out", limit=2)
    kept = verbs.perplexity(config)
    assert isinstance(kept, Artifact)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [item["tokens"] for item in items] == [9, 5]
    assert items[0]["nll"] == pytest.approx(expected.nll[0], rel=1e-5)
    assert verbs.perplexity(config).manifest["key"] == kept.key  # pyright: ignore[reportAttributeAccessIssue]


def test_tasks_are_scored_over_all_and_by_task(directory: str, tmp_path: Path):
    rows = [{"question": f"q{i}", "answers": ["x"], "task": "ab"[i % 2]} for i in range(4)]
    data = _rows(tmp_path / "q.jsonl", rows)
    report = verbs.tasks(verbs.TasksOptions(model=directory, data=(data,), max_tokens=3, metrics=("f1", "rouge_l")))
    assert isinstance(report, verbs.TasksReport)
    found = [(s.task, s.metric, s.rows) for s in report.scores]
    assert found == [(task, m, n) for task, n in (("all", 4), ("a", 2), ("b", 2)) for m in ("f1", "rouge_l")]


def test_win_rates_come_from_columns_or_from_models(directory: str, tmp_path: Path):
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = f"{tmp_path / 'judge.py'}:longer"
    data = _rows(tmp_path / "w.jsonl", [{"prompt": "p", "x": "aa", "y": "b"}, {"prompt": "q", "x": "c", "y": "d"}])
    report = verbs.winrate(verbs.WinrateOptions(data=(data,), judge=(judge,), a="x", b="y"))
    assert isinstance(report, verbs.WinrateReport)
    assert (report.win_rate, report.wins, report.ties, report.losses) == (0.75, 1, 1, 0)
    lm = with_adapters(lm_of(), "default")
    lm.name = directory
    save(lm, tmp_path / "adapter")
    config = verbs.WinrateOptions(
        model=directory,
        adapter=str(tmp_path / "adapter"),
        data=(data,),
        judge=(judge,),
        max_tokens=4,
        out=tmp_path / "o",
    )
    kept = verbs.winrate(config)
    assert isinstance(kept, Artifact)
    items = [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 2
    assert items[0]["a"] != items[0]["b"]
    with pytest.raises(DataError, match='field "missing"'):
        verbs.winrate(verbs.WinrateOptions(data=(data,), judge=(judge,), a="missing", b="y"))


@pytest.mark.parametrize(
    ("words", "function"),
    [
        ("engine generate --model base --prompt a --max-tokens 4 --stop x y --dry-run", "generate"),
        ("engine score --model base --prompt a --completion b c --dry-run", "score"),
        ("engine embed --model base --data t --out v --dry-run", "embed"),
        ("evaluate perplexity --model base --adapter adapted --data docs --out perplexity", "perplexity"),
        ("evaluate tasks --model base --data q --metrics rouge_l --max-tokens 128 --out scores", "tasks"),
        ("evaluate winrate --data a --a ours --b theirs --judge judge.py:score", "winrate"),
    ],
)
def test_flags_fill_the_settings(words: str, function: str):
    room = words.split()[0]
    table = {(room, function): (f"maypole.{room}.verbs:{function}", "")}
    found = parse(words.split(), None, table)
    options = found.kwargs.get("config", *found.args)
    assert found.function.__name__ == function
    assert (options.out is None) == ("--out" not in words)
    assert options.dry_run == ("--dry-run" in words)


def test_settings_are_checked_before_anything_loads(tmp_path: Path):
    with pytest.raises(ConfigError, match="--metrics"):
        verbs.TasksOptions(model="m", data=("d",), metrics=("bleu",))
    with pytest.raises(ConfigError, match="--judge-weights"):
        verbs.WinrateOptions(data=("d",), judge=("a.py:f",), judge_weights=(1.0, 2.0))


def test_a_dry_run_finds_what_would_stop_the_run(directory: str, tmp_path: Path):
    data = _rows(tmp_path / "t.jsonl", [{"text": "a"}] * 3)
    plan = verbs.perplexity(verbs.PerplexityOptions(model=directory, data=(data,), dry_run=True))
    assert isinstance(plan, DryRun)
    assert plan.rows_kept == 3
    with pytest.raises(UserError, match="absent: no such directory"):
        verbs.perplexity(verbs.PerplexityOptions(model="absent", data=(data,), dry_run=True))
    asked = _rows(tmp_path / "q.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "a"}])
    with pytest.raises(DataError, match=r'q.jsonl row 2, field "answers": no reference answer'):
        verbs.tasks(verbs.TasksOptions(model=directory, data=(asked,), dry_run=True))
    (tmp_path / "judge.py").write_text(JUDGE)
    judge, unknown = (f"{tmp_path / 'judge.py'}:{name}" for name in ("longer", "shorter"))
    with pytest.raises(DataError, match=r'q.jsonl row 1, field "a": the field is missing; found prompt, answer'):
        verbs.winrate(verbs.WinrateOptions(data=(asked,), judge=(judge,), dry_run=True))
    with pytest.raises(UserError, match="no function 'shorter'"):
        verbs.winrate(verbs.WinrateOptions(model=directory, data=(asked,), judge=(unknown,), dry_run=True))
    rival = verbs.WinrateOptions(model=directory, against="absent", data=(asked,), judge=(judge,), dry_run=True)
    with pytest.raises(UserError, match="absent: no such directory"):
        verbs.winrate(rival)
