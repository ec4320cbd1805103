"""Kill a tour anywhere, or stop it: the same command goes on and ends with the numbers of an undisturbed tour."""

import itertools
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from maypole.align.online import OnlineRounds
from maypole.cli.main import run as command
from maypole.tour import TourOptions, run_tour
from maypole.tour import adapt as adapting
from maypole.tour import align as aligning
from maypole.tour import curate as curating
from maypole.tour import evaluate as evaluating
from maypole.tour import plan as planning
from maypole.tour import serve as serving
from maypole.tour.preferences import BesideGiven
from maypole.tour.report import Report
from tests.tour.test_tour import words

pytestmark = pytest.mark.usefixtures("_fixed_rates")


def kill(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def at_step(number: int, what: Callable[[], None]) -> Callable[..., None]:
    """In place of the callback of the corpus run."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_evaluate = True
        if state.global_step == number:
            what()

    return on_step_end


def at_call(number: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, which dies when it is called for the `number`-th time."""
    calls = itertools.count(1)

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            kill()
        return work(*args, **kwargs)

    return called


def in_a_child(work: Callable[[], Any]) -> int:
    """The exit code of `work` in a forked process, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def told(report: Report) -> Any:
    """Everything in a report that no clock decides."""
    untimed = [s for s in report.stages if s.name != "serve"]
    timed = [(s.name, s.state, s.examples) for s in report.stages if s.name == "serve"]  # all else has seconds in it
    return report.measures, timed, [(s.name, s.state, s.finding, s.examples, s.table, s.plots) for s in untimed]


@pytest.fixture(params=["own base", "user's model"])
def asked(request, tmp_path, corpus, model) -> TourOptions:
    given: dict[str, Any] = {"model": str(model)} if request.param == "user's model" else {}
    return TourOptions(corpus=corpus, minutes=0.05, out=tmp_path / "undisturbed", **given)


def test_killed_in_every_stage_it_ends_like_an_undisturbed_tour(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SPARED", 10.0)
    undisturbed = run_tour(asked)
    out = tmp_path / "killed"
    out.mkdir()
    shutil.copy(asked.out / "plan.json", out)
    again = TourOptions(model=asked.model, corpus=asked.corpus, minutes=asked.minutes, out=out)
    if asked.model is None:
        moments = [
            (curating, "prune", kill),
            (adapting._MeasuredFirst, "on_step_end", at_step(3, kill)),
            (adapting, "instruction_rows", kill),
            (aligning, "form_rows", kill),
            (OnlineRounds, "_judged", at_call(2, OnlineRounds._judged)),
            (aligning, "_policies", kill),
            (serving, "one_by_one", kill),
            (evaluating, "choose", kill),
        ]
    else:
        moments = [
            (curating, "_composition", kill),
            (adapting._MeasuredFirst, "on_step_end", at_step(8, kill)),
            (adapting, "save_result", kill),
            (BesideGiven, "rows", at_call(2, BesideGiven.rows)),
            (serving, "texts", kill),
            (evaluating, "ask", kill),
        ]
    for target, name, dies in moments:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, dies)
            assert in_a_child(lambda: run_tour(again)) == -signal.SIGKILL, name
        assert "RUNNING" in words(out / "report.html")
    resumed = run_tour(again)
    assert told(resumed) == told(undisturbed)
    file = "adapter_model.safetensors" if asked.model else "model.safetensors"
    first, second = (load_file(folder / "03-align" / file) for folder in (asked.out, out))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_ctrl_c_keeps_the_steps_says_the_command_and_shows_where_it_stopped(
    tmp_path, corpus, model, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    line = ["tour", "--model", str(model), "--corpus", str(corpus), "--minutes", "0.05", "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(adapting._MeasuredFirst, "on_step_end", at_step(7, interrupt))
        assert command(line) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert "stopped at adapt; corpus, step 7 is saved" in said.err
    assert Path("run/report.html").read_text().count("Repeat this") == 1  # of curate, which is done
    continues = f"maypole tour --model {model} --corpus {corpus} --minutes 0.05 --out run"
    assert f"Continue:  {continues}" in said.err
    shown = words(Path("run/report.html"))
    assert "STOPPED AT ADAPT" in shown
    assert "This run was interrupted at adapt." in shown
    assert "It goes on after corpus, step 7, which is saved." in shown
    assert f"--corpus {corpus}" in shown
    assert command(line) == 0
    said = capsys.readouterr()
    assert "going on after corpus, step 7" in said.err
    assert "done in" in said.out
    assert "COMPLETE" in words(Path("run/report.html"))


def test_a_failure_is_told_in_the_report_with_the_log_and_the_same_command_goes_on(
    tmp_path, corpus, model, monkeypatch
):
    asked = TourOptions(model=str(model), corpus=corpus, minutes=0.05, out=tmp_path / "run")

    def breaks(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("maypole").warning("the moon is in the way")
        raise RuntimeError("no light")

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "ask", breaks)
        with pytest.raises(RuntimeError, match="no light"):
            run_tour(asked)
    shown = words(asked.out / "report.html")
    assert "FAILED AT EVALUATE" in shown
    assert "no light" in shown
    assert "the moon is in the way" in shown
    assert "Held-out loss fell" in shown
    assert run_tour(asked).state == "complete"


def test_a_report_that_cannot_be_written_does_not_hide_what_stopped_the_tour(tmp_path, corpus, model, monkeypatch):
    asked = TourOptions(model=str(model), corpus=corpus, minutes=0.05, out=tmp_path / "run")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def breaks(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr("maypole.tour.tale.write", full)
        raise RuntimeError("no light")

    monkeypatch.setattr("maypole.tour.run.adapt", breaks)
    with pytest.raises(RuntimeError, match="no light"):
        run_tour(asked)
