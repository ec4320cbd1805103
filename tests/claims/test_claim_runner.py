import json
import sys
from pathlib import Path

import pytest

from maypole.claims import runner
from maypole.claims.runner import load_claim, run_claim
from maypole.claims.verbs import ClaimOptions, Verdicts, claim, parse_seeds, written
from maypole.cli.show import exit_code, show
from maypole.core.errors import ConfigError, UserError
from maypole.core.progress import set_quiet

STUB = """
import os
from pathlib import Path
from maypole.claims.effects import Effect, Part

STATEMENT = "Ours beats the baseline."

def _count(name):
    with open(os.environ["COUNTS"], "a") as file:
        file.write(name + "\\n")

def holding(seed, workdir):
    _count(f"holding {seed} {os.environ['OMP_NUM_THREADS']}")
    (workdir / "figures").mkdir()
    (workdir / "figures" / "curve.svg").write_text("<svg/>")
    return [Effect("gain", "accuracy", 0.6 + seed / 100, 0.5, 0.05, "difference>=")]

def failing(seed, workdir):
    return [Effect("gain", "accuracy", 0.6 if seed else 0.5, 0.5, 0.05, "difference>=")]

def crashing(seed, workdir):
    _count(f"crashing {seed}")
    if seed == 1 and not Path(os.environ["COUNTS"]).with_name("mended").exists():
        raise RuntimeError("the judge misses its gate")
    return [Effect("gain", "accuracy", 0.9, 0.5, 0.05, "difference>=")]

def cut_off(seed, workdir):
    first, mended = workdir / "first", Path(os.environ["COUNTS"]).with_name("mended")
    if not first.exists():
        _count(f"first half {seed}")
        first.write_text("0.6")
    if not mended.exists():
        os._exit(9)
    _count(f"second half {seed}")
    return [Effect("gain", "accuracy", float(first.read_text()), 0.5, 0.05, "difference>=")]

PARTS = {"": Part(NAME)}
"""
PARTS = 'PARTS = {"fast": Part(holding), "slow": Part(failing, timed=True), "later": None}\n'


@pytest.fixture(autouse=True)
def _stubs(tmp_path, monkeypatch):
    folder = tmp_path / "stub_claims"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("holding", "failing", "crashing", "cut_off"):
        (folder / f"{name}.py").write_text(STUB.replace("NAME", name))
    (folder / "with_parts.py").write_text(STUB.replace('PARTS = {"": Part(NAME)}', PARTS))
    (folder / "timed.py").write_text(STUB.replace("NAME", "cut_off, timed=True"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COUNTS", str(tmp_path / "counts"))
    monkeypatch.setattr(runner, "_stamp", lambda module: (folder / f"{module.split('.')[1]}.py").read_text()[-200:])
    set_quiet(True)
    yield
    set_quiet(False)
    for name in [n for n in sys.modules if n.startswith("stub_claims")]:
        del sys.modules[name]


def _run(name: str, out: Path, seeds=(0, 1, 2)):
    return run_claim(name, seeds=seeds, out=out, package="stub_claims")


def _counts(tmp_path) -> list[str]:
    return sorted((tmp_path / "counts").read_text().splitlines())


def test_a_claim_that_holds_is_stored_with_all_it_measured(tmp_path):
    result = _run("holding", tmp_path / "o")
    stored = json.loads((tmp_path / "o" / "claim.json").read_text())
    assert stored == result.to_json()
    assert stored.keys() == {"id", "statement", "effects", "seeds", "seconds", "figures", "versions", "holds"}
    assert (stored["holds"], stored["seeds"], stored["statement"]) == (True, [0, 1, 2], "Ours beats the baseline.")
    assert stored["effects"][0]["ours"] == [0.6, 0.61, 0.62]
    assert stored["effects"][0]["ci95"] == pytest.approx([0.1, 0.12])
    assert stored["figures"] == [f"all/seed-{s}/figures/curve.svg" for s in (0, 1, 2)]
    assert _counts(tmp_path) == ["holding 0 1", "holding 1 1", "holding 2 1"]


def test_seeds_already_measured_are_not_run_again_unless_the_code_changed(tmp_path):
    _run("holding", tmp_path / "o", seeds=(0,))
    _run("holding", tmp_path / "o", seeds=(0, 1))
    assert _counts(tmp_path) == ["holding 0 1", "holding 1 1"]
    with (tmp_path / "stub_claims" / "holding.py").open("a") as file:
        file.write("# changed\n")
    _run("holding", tmp_path / "o", seeds=(0,))
    assert _counts(tmp_path) == ["holding 0 1", "holding 0 1", "holding 1 1"]


def test_one_seed_that_misses_the_threshold_fails_the_claim(tmp_path):
    result = _run("failing", tmp_path / "o")
    assert not result.holds
    assert not result.errors
    assert exit_code(Verdicts((result,))) == 1


def test_a_seed_that_crashes_fails_the_claim_and_is_tried_again(tmp_path):
    result = _run("crashing", tmp_path / "o")
    assert not result.holds
    assert result.effects == []
    assert "RuntimeError: the judge misses its gate (see " in result.errors["seed 1"]
    (tmp_path / "mended").touch()
    assert _run("crashing", tmp_path / "o").holds
    assert _counts(tmp_path) == ["crashing 0", "crashing 1", "crashing 1", "crashing 2"]


def test_a_seed_that_was_cut_off_goes_on_from_its_first_half(tmp_path):
    result = _run("cut-off", tmp_path / "o", seeds=(0,))
    assert "ended with code 9" in result.errors["seed 0"]
    (tmp_path / "mended").touch()
    assert _run("cut-off", tmp_path / "o", seeds=(0,)).holds
    assert _counts(tmp_path) == ["first half 0", "second half 0"]


def test_what_a_failing_seed_went_on_from_is_named(tmp_path):
    _run("cut-off", tmp_path / "o", seeds=(0,))
    work = tmp_path / "o" / "all" / "seed-0"
    said = _run("cut-off", tmp_path / "o", seeds=(0,)).errors["seed 0"]
    assert f"it went on from what was in {work}: without that it begins anew" in said
    assert _counts(tmp_path) == ["first half 0"]


def test_changed_code_and_measured_seconds_begin_anew(tmp_path):
    _run("cut-off", tmp_path / "o", seeds=(0,))
    _run("timed", tmp_path / "p", seeds=(0,))
    (tmp_path / "mended").touch()
    assert _run("timed", tmp_path / "p", seeds=(0,)).holds
    assert _counts(tmp_path) == ["first half 0"] * 3 + ["second half 0"]
    with (tmp_path / "stub_claims" / "cut_off.py").open("a") as file:
        file.write("# changed\n")
    assert _run("cut-off", tmp_path / "o", seeds=(0,)).holds
    assert _counts(tmp_path) == ["first half 0"] * 4 + ["second half 0"] * 2


def test_a_claim_with_parts_holds_only_if_all_parts_exist_and_hold(tmp_path, capsys):
    result = _run("with-parts", tmp_path / "o")
    assert [(e["name"], e["holds"]) for e in result.effects] == [("fast/gain", True), ("slow/gain", False)]
    assert result.missing == ["later"]
    assert not result.holds
    assert _run("with-parts/fast", tmp_path / "p").holds
    show(Verdicts((result,)), as_json=False)
    out = capsys.readouterr().out
    assert "does not hold" in out
    assert "not written yet: later" in out


def test_unknown_claims_and_parts_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no claim 'sppp'\n  hint: did you mean sppo"):
        load_claim("sppp")
    with pytest.raises(UserError, match="no claim 'runner'"):
        load_claim("runner")
    with pytest.raises(UserError, match="the claim of hipporag is not written yet"):
        load_claim("hipporag", "stub_claims")
    with pytest.raises(UserError, match=r"claim with-parts has no part 'x'\n  hint: one of: fast, slow, later"):
        _run("with-parts/x", tmp_path / "o")


def test_seeds_are_a_count_or_a_list():
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("7,11,13") == [7, 11, 13]
    assert parse_seeds("7,") == [7]
    for wrong in ("0", "x", "1,1", "-2,3", ""):
        with pytest.raises(ConfigError, match="--seeds"):
            ClaimOptions(seeds=wrong)


def test_the_verb_runs_what_is_named_and_copies_the_verdicts(tmp_path, monkeypatch):
    from maypole.claims import verbs

    monkeypatch.setattr(verbs, "run_claim", lambda name, seeds, out: _run(name, out, seeds))
    options = ClaimOptions(seeds="1", out=tmp_path / "o", results=tmp_path / "docs")
    verdicts = claim("holding", "crashing", config=options)
    assert verdicts.holds
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["crashing.json", "holding.json"]
    assert (tmp_path / "o" / "holding" / "claim.json").exists()
    with pytest.raises(UserError, match="no claim named"):
        claim()
    assert set(written()) <= {s.replace("_", "-") for s in written()}
