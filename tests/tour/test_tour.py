"""Whole tours: their stages, measures and folders, for the base that ships and for a user's model."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from maypole.cli.main import run as command
from maypole.core.artifact import Artifact
from maypole.core.errors import ArtifactError
from maypole.core.identity import digest
from maypole.core.lock import DirectoryLock
from maypole.models import load
from maypole.tour import plan as planning
from maypole.tour import run_tour
from maypole.tour.adapt import curve
from maypole.tour.corpus import load_corpus
from maypole.tour.mixture import mixture
from maypole.tour.plan import Plan
from maypole.tour.report.page import render
from maypole.tour.rows import corpus_rows, held_out_rows, instruction_rows
from maypole.train import TrainConfig, fit
from maypole.village.zoo import PretrainingMix, load_zoo
from tests.tour.conftest import RATES, options, sentences

pytestmark = pytest.mark.usefixtures("_fixed_rates")


def words(path: Path) -> str:
    root = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(path.read_text())
    return " ".join("".join(root.find("body").itertext()).split())


def state_of(report, name: str) -> str:
    return next(stage.state for stage in report.stages if stage.name == name)


@pytest.fixture(scope="module")
def users(tmp_path_factory, corpus, model):
    """A finished tour of a user's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maypole.tour.run.probe", lambda *args, **kwargs: RATES)
        patch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        asked = options(tmp_path_factory.mktemp("users") / "run", corpus, model)
        return asked, run_tour(asked)


def test_the_base_that_ships_learns_with_all_weights_and_is_asked_what_it_knew(own):
    asked, report = own
    assert [m.name for m in report.measures] == [
        "corpus perplexity", "general perplexity", "new tasks", "old tasks", "facts recalled",
    ]  # fmt: skip
    assert report.measures[0].verdict == "better"
    adapted = asked.out / "02-adapt"
    AutoModelForCausalLM.from_pretrained(adapted)
    assert not (adapted / "adapter_config.json").exists()
    assert set(Artifact.load(adapted).manifest["children"]) == {"corpus", "instructions"}


def test_a_users_model_gets_an_adapter_and_general_text_beside_the_corpus(users, model):
    asked, report = users
    assert [m.name for m in report.measures] == ["corpus perplexity", "general perplexity", "task accuracy"]
    assert report.measures[0].verdict == "better"
    base = AutoModelForCausalLM.from_pretrained(model)
    PeftModel.from_pretrained(base, str(asked.out / "02-adapt"))
    assert load(asked.out / "02-adapt").name == str(model)


def test_all_nine_stages_are_listed_and_the_missing_ones_called_missing(users):
    asked, report = users
    assert [stage.number for stage in report.stages] == list(range(1, 10))
    assert [stage.name for stage in report.stages if stage.state == "done"] == [
        "curate", "adapt", "align", "serve", "evaluate",
    ]  # fmt: skip
    assert {stage.state for stage in report.stages} == {"done", "absent"}
    shown = words(asked.out / "report.html")
    assert "Not in the tour yet" in shown
    assert "6 Compress makes the model smaller and quicker." in shown


def test_the_report_has_what_a_decision_needs(own):
    asked, report = own
    shown = words(asked.out / "report.html")
    for expected in (
        "maypole tour", "village-1M", "notes", "COMPLETE", "Of 5 measures", "Repeat this", "Provenance", asked.command,
        "Documents by surprise", "Nothing was mixed in.", "left out: too much surprise",
        "Held-out loss against training tokens", "Accuracy per skill",
        "Win rate by round", "Win rate against distance",
        "Change against the base", "largest gain",
    ):  # fmt: skip
        assert expected in shown, expected
    stages = {stage.name: stage for stage in report.stages}
    assert len(stages["adapt"].plots) == 2
    assert stages["adapt"].examples
    assert stages["evaluate"].examples
    assert str(Path.home()) not in shown
    assert (asked.out / "report.html").stat().st_size < 3_000_000
    assert render(report) == (asked.out / "report.html").read_text()


def test_the_first_point_of_the_curve_is_the_base(own, tmp_path):
    asked, _ = own
    points = curve(asked.out / "02-adapt")
    assert points[0][0] == 0
    assert [tokens for tokens, _ in points] == sorted({tokens for tokens, _ in points})
    assert points[-1][1] < points[0][1]
    lm, corpus = load_zoo("village-1M"), load_corpus(asked.corpus)
    watched = range(Plan.read(asked.out / "plan.json").adapt.curve_documents)
    rows = held_out_rows(lm, corpus.held_out.select(watched), replay=True, length=256)
    hardly = TrainConfig(max_steps=1, learning_rate=1e-12, max_length=256)
    measured = fit(lm, rows, PretrainingMix(), hardly, out=tmp_path / "base", eval_rows=rows)
    assert points[0][1] == pytest.approx(measured.manifest["metrics"]["eval_loss"], abs=1e-6)


def test_a_finished_tour_is_found_and_measures_the_same(users, capsys):
    asked, report = users
    before = (asked.out / "02-adapt" / "manifest.json").read_bytes()
    again = run_tour(asked)
    assert again.measures == report.measures
    assert again.seconds == report.seconds
    assert (asked.out / "02-adapt" / "manifest.json").read_bytes() == before
    assert "adapt: done before" in capsys.readouterr().err


def test_the_command_that_repeats_the_evaluation_finds_the_reports_number(own, capsys):
    _, report = own
    line = next(stage.repeat_command for stage in report.stages if stage.name == "evaluate")
    assert command([*shlex.split(line)[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(report.measures[0].after, rel=1e-4)


def test_the_python_form_of_repeating_a_stage_runs(own):
    _, report = own
    found: dict = {}
    program = next(stage.repeat_python for stage in report.stages if stage.name == "adapt")
    exec(program.replace("run_tour(T", "again = run_tour(T"), found)
    assert found["again"].measures == report.measures


@pytest.mark.parametrize("own_base", [True, False])
def test_own_data_only_leaves_the_village_out(own_base, tmp_path, corpus, model, monkeypatch):
    monkeypatch.setattr(planning, "SPARED", 0.0 if own_base else 10.0)
    report = run_tour(options(tmp_path / "run", corpus, None if own_base else model, own_data_only=True))
    expected = ["corpus perplexity"] + ([] if own_base else ["general perplexity"])
    assert [m.name for m in report.measures] == expected
    assert not (tmp_path / "run" / "02-adapt" / "instructions").exists()
    assert json.loads((tmp_path / "run" / "09-evaluate" / "items.json").read_text())["questions"] == []
    if not own_base:
        aligned_to_own_texts(tmp_path / "run", report)


def aligned_to_own_texts(run: Path, report) -> None:
    assert set(Artifact.load(run / "03-align").manifest["children"]) == {"rounds"}
    first = json.loads((run / "03-align" / "measured.jsonl").read_text().splitlines()[0])
    assert set(first) == {"prompt", "continuation"}
    page = next(stage for stage in report.stages if stage.name == "align")
    assert "ROUGE-L" in page.finding
    assert "('continuation',)" in page.repeat_python


def test_a_model_without_a_chat_template_is_asked_in_plain_words(tmp_path, corpus, plain_model):
    report = run_tour(options(tmp_path / "run", corpus, plain_model))
    assert [m.name for m in report.measures] == ["corpus perplexity", "general perplexity", "task accuracy"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minutes": 1.0}, "minutes: 0.05 then, 1.0 now"),
        ({"seed": 7}, "seed: 0 then, 7 now"),
        ({"own_data_only": True}, "own_data_only: False then, True now"),
        ({"model": None}, "model: tiny-llama then, village-1M now"),
    ],
)
def test_another_tour_in_the_same_folder_is_refused_by_what_differs(changes, said, users):
    asked, _ = users
    with pytest.raises(ArtifactError, match="name another --out") as error:
        run_tour(dataclasses.replace(asked, **changes))
    assert said in str(error.value)


def test_another_corpus_of_the_same_name_is_refused(users, tmp_path):
    asked, _ = users
    other = tmp_path / "notes"
    other.mkdir()
    (other / "a.txt").write_text(sentences(3000, seed=99))
    with pytest.raises(ArtifactError, match="corpus: its content"):
        run_tour(dataclasses.replace(asked, corpus=other))


def test_two_tours_in_one_folder_at_a_time_are_refused(users):
    asked, _ = users
    lock = DirectoryLock.take(asked.out)
    try:
        with pytest.raises(ArtifactError, match="another process is working on it"):
            run_tour(asked)
    finally:
        lock.release(remove=True)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, corpus, model):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds no tour but thesis\.txt"):
        run_tour(options(tmp_path / "run", corpus, model))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        run_tour(options(tmp_path / "file", corpus, model))


def rows_of(corpus: Path) -> str:
    """A hash of all rows that a plan and a seed lead to."""
    texts, lm = load_corpus(corpus), load_zoo("village-1M")
    made = [make(lm, texts.train, 9, replay=True, length=64, seed=4)[0] for make in (corpus_rows, instruction_rows)]
    mixed = str(mixture(texts, 9, 9, seed=4))
    return digest(texts.identity, mixed, *(f"{rows._fingerprint} {rows[:]}" for rows in made))


def test_equal_plan_and_seed_give_equal_rows_whatever_the_hash_seed(corpus):
    program = "import sys; from pathlib import Path; from tests.tour.test_tour import rows_of; "
    program += "print(rows_of(Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    child = subprocess.run(
        [sys.executable, "-c", program, str(corpus)], env=environment, capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdout.strip() == rows_of(corpus), child.stderr
