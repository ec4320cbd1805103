from dataclasses import dataclass

import numpy as np
import pytest

from maypole.cli.show import document, exit_code, show
from maypole.core.config import DryRun


@dataclass(frozen=True)
class _Answer:
    text: str
    score: float = 0.5
    ratio: float | None = None
    by_task: dict | None = None


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_untrusted_text_is_shown_as_it_is(capsys):
    show(_Answer("[red]x[/red] \x1b[31m \u202e"), as_json=False)
    assert "[red]x[/red] \\x1b[31m \\x202e" in capsys.readouterr().out


def test_rows_are_a_table_with_a_heading(capsys):
    show([{"item": "a", "value": 1200}, {"item": "b", "value": 7}], as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["item", "value"],
        ["a", "1,200"],
        ["b", "7"],
    ]


def test_a_plan_that_has_nothing_to_say_says_so(capsys):
    show(DryRun(), as_json=False)
    assert capsys.readouterr().out == "nothing stands in the way\n"


def test_arrays_and_infinite_numbers_are_valid_json():
    found = document(_Answer("a", float("nan"), by_task={"x": np.float32(0.5), "y": np.arange(2)}))
    assert found == {"text": "a", "score": None, "ratio": None, "by_task": {"x": 0.5, "y": [0, 1]}}


def test_nothing_is_shown_for_nothing(capsys):
    show(None, as_json=False)
    assert capsys.readouterr().out == ""


def test_results_choose_their_exit_code():
    assert exit_code(_Answer("a")) == 0
    assert exit_code(type("R", (), {"holds": False})()) == 1
    assert exit_code(type("R", (), {"exit_code": 3})()) == 3
