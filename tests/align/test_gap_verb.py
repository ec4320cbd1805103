"""`maypole align gap`, from the words on the command line to the report it leaves."""

import json
from pathlib import Path

import pytest

from tests.docs_workplace import examples, furnish

COMMAND = "align gap --quiet"
QUICK = "--betas 0.1 --rates 1 --steps 2 --eval-every 1 --max-tokens 4 --train.examples-per-step 4"


@pytest.fixture(autouse=True)
def _here(place):
    furnish(place)


def test_both_examples_of_the_help_say_which_runs_there_would_be(maypole):
    for example, cells in zip(examples("align", "gap"), (4 * 4 * 2, 3 * 4 * 2)):
        code, out, err = maypole(f"{example} --json --dry-run")
        assert code == 0, err
        plan = json.loads(out)
        assert len([name for name in plan["files"] if name.startswith("cells/")]) == cells
        assert plan["steps"] == 240 * cells
        assert plan["minutes"] > 0
        assert "report.html" in plan["files"]
    assert not list(Path().glob("gap*.part"))


def test_the_report_is_there_and_the_same_command_finds_it(maypole):
    line = f"--config gap.yaml --experiments gap {QUICK} --out gap"
    code, out, err = maypole(f"{line} --json")
    assert code == 0, err
    assert "gap: online - offline/best_difference" in out
    assert "fresh answers against fixed ones" in Path("gap", "report.html").read_text()
    before = Path("gap", "report.json").stat().st_mtime_ns
    assert maypole(line)[0] == 0
    assert Path("gap", "report.json").stat().st_mtime_ns == before
    assert json.loads(maypole(f"{line} --json --dry-run")[1])["reuses"] == ["gap"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--experiments luck", "gap, coverage, quality"),
        ("--betas 0", "numbers above 0"),
        ("--experiments quality", "--strong"),
        ("--experiments scale", "--sizes"),
        ("--strong base", "nothing without --experiments quality"),
        ("--sizes a/base b/base --experiments scale", "names that differ"),
        ("--proxy judge.py:prefers", "proxy and judge are the same"),
        ("--judge judge.py:nobody", "no function 'nobody'"),
        ("--train.max-steps 3", "--steps is what every run takes"),
        ("--train.examples-per-step 32", "at most 24, the number of prompts"),
        ("--eval-every 7", "a divisor of steps, 240"),
        ("--held-out 1", "below 1"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_drawn(maypole, words: str, says: str):
    code, _, err = maypole(f"--config gap.yaml --out gap {words}")
    assert code == 2
    assert says in " ".join(err.split())
    assert not Path("gap.part").exists()
