"""The examples that the help of a command gives work as they stand, where the files they name are there."""

import shlex
from pathlib import Path

import pytest

from maypole.cli.commands import COMMANDS
from maypole.cli.main import run
from tests.docs_workplace import examples, furnish

WITHOUT_DRY_RUN = {("claim",), ("tour",), ("systems",), ("env",)}
"""Commands that say what they will do before each of their parts, or do nothing but print."""


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in WITHOUT_DRY_RUN])
def test_the_examples_of_a_help_work(path: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]):
    furnish(place)
    before = sorted(file.name for file in place.iterdir())
    found = [[*path, *shlex.split(line)] for line in examples(*path)]
    assert len(found) >= 2
    if path == ("curate", "prune"):  # its second example takes what the first one made
        assert run(found[0]) == 0
        before = sorted([*before, "medium"])
    for words in found:
        assert run([*words, "--dry-run"]) == 0, (words, capsys.readouterr().err)
    assert sorted(file.name for file in place.iterdir() if file.name != "cache") == before
