import io
import sys

import pytest

from maypole.core import progress
from maypole.core.progress import duration, set_quiet, tell, track


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _loud():
    set_quiet(False)
    yield
    set_quiet(False)


def test_without_a_terminal_there_is_one_line_at_the_start_and_one_at_the_end(capsys):
    with track("train", 1200, "steps") as step:
        for _ in range(1200):
            step(loss=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "train: 1,200 steps\ntrain: 1,200 steps in 0:00  loss 0.5\n"


def test_without_a_terminal_lines_between_tell_share_rate_and_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("train", 100, "steps") as step:
        for _ in range(100):
            now[0] += 0.25
            step(loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train: 40 of 100 steps (40 %)  4 steps/s  loss 0.5  eta 0:15"
    assert len(lines) == 4


def test_a_run_that_stops_says_how_far_it_came(capsys):
    def fail() -> None:
        with track("train", 10, "steps") as step:
            step(3)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert capsys.readouterr().err.endswith("train: stopped after 3 steps\n")


def test_what_is_told_from_within_stands_beside_what_is_shown(capsys):
    tell(documents=1)
    with track("score", 2, "shards") as step:
        tell(documents=7)
        step()
    tell(documents=9)
    assert capsys.readouterr().err == "score: 2 shards\nscore: 1 shards in 0:00  documents 7\n"


def test_quiet_shows_nothing(capsys):
    set_quiet(True)
    with track("train", 10, "steps") as step:
        step()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_with_titles_as_they_are(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with track("[red]x[/red]\x1b[31m", 2, "rows") as step:
        step(2, name="[bold]n")
    shown = terminal.getvalue()
    assert "[red]x[/red]\\x1b[31m" in shown
    assert "name [bold]n" in shown
    assert "100%" in shown
    assert "\x1b[31m" not in shown


def test_a_dumb_terminal_gets_lines(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with track("t", None, "rows") as step:
        step(2)
    assert terminal.getvalue() == "t (rows)\nt: 2 rows in 0:00\n"


def test_durations_read_as_clocks():
    assert [duration(s) for s in (7.4, 760, 11100)] == ["0:07", "12:40", "3:05:00"]
