"""The claim of the online-offline gap: its rules on the numbers that they come from, and a small run of it all."""

import json
from pathlib import Path
from typing import Any

import pytest

from maypole.claims import online_offline_gap as claim
from maypole.claims.descriptions import Corner, Schooling
from maypole.claims.learnt_judge import Learning
from maypole.claims.online_offline_gap import FAR, NEAR, Found, Sizes, Truth, nearest
from maypole.claims.verdict import combine
from maypole.core.progress import set_quiet
from maypole.village.describe import describe_prompt

MEASURED: dict[tuple[str, float], list[tuple[float, float]]] = {
    ("offline", 0.1): [(0.725, 2.39), (0.724, 2.99), (0.753, 3.29), (0.703, 3.95)],
    ("online", 0.1): [(0.736, 1.31), (0.787, 1.80), (0.815, 2.15), (0.818, 2.11)],
    ("offline", 0.03): [(0.722, 3.20), (0.655, 5.25), (0.639, 6.44), (0.628, 7.37)],
    ("online", 0.03): [(0.749, 2.48), (0.798, 3.94), (0.814, 5.74), (0.811, 8.17)],
    ("shuffled", 0.03): [(0.650, 2.42), (0.620, 5.32), (0.690, 5.60), (0.653, 6.99)],
    ("shuffled", 0.1): [(0.70, 2.0), (0.70, 2.2), (0.70, 2.3), (0.70, 2.4)],
}
"""Wins and distance as measured before there was a claim; the last line was not, and is as expected."""


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)


def found(**changes: float) -> Found:
    points: list[Any] = [
        {"arm": arm, "beta": beta, "step": 60 * i, "win_rate": wins + changes.get(arm, 0.0), "kl": kl}
        for (arm, beta), some in MEASURED.items()
        for i, (wins, kl) in enumerate(some, 1)
    ]
    return Found(points, 0.84, 1.0, Path())


def missed(effects: list[Any]) -> set[str]:
    return {effect["name"] for effect in combine([effects]) if not effect["holds"]}


def test_the_numbers_that_the_thresholds_come_from_support_the_claim():
    assert not missed(claim._wins(found()))
    assert not missed(claim._order(found(), Sizes()))


def test_without_a_lead_or_an_order_it_misses():
    assert missed(claim._wins(found(offline=0.1))) == {"online above offline"}
    assert missed(claim._order(found(shuffled=0.15), Sizes())) == {"online above its own rows shuffled"}
    assert missed([claim._best(found(), "no lead", 0.0, "difference<=")]) == {"no lead"}


def test_points_are_compared_that_are_as_far_from_the_start():
    ours, theirs = nearest(found().of("online"), found().of("offline"), *NEAR)
    assert (ours["kl"], theirs["kl"]) == (2.48, 2.39)
    ours, theirs = nearest(found().of("online"), found().of("offline"), *FAR)
    assert (ours["kl"], theirs["kl"]) == (3.94, 3.95)
    tight, _ = nearest(found().of("online", 0.1), found().of("offline"), *FAR)
    assert tight["kl"] == 2.15  # it was never as far: the nearest to the middle


def test_the_truth_counts_clauses_and_wants_an_end():
    corner = Corner(0)
    name = corner.names[0]
    job = corner.lookup[name, "job"]
    truth = Truth(corner)
    said = [f" job {job}.", f" job {job}", f" job {job}, job {job}.", " job nobody."]
    assert truth(prompts=[describe_prompt(name)] * 4, completions=said) == [1.0, 0.0, 0.0, -1.0]


def test_a_small_claim_runs_from_end_to_end(tmp_path):
    quick = Learning(steps=2, examples_per_step=8)
    sizes = Sizes(
        schooling=Schooling(size=(1, 32), steps=60), pairs=24, held_out=12, prompts=24, betas=(0.1, 0.03), steps=2,
        eval_every=1, examples_per_step=4, judge=quick, weak_pairs=12, weak=quick,
    )  # fmt: skip
    effects = claim.run(11, tmp_path / "good", sizes)
    assert len(effects) == 12
    again = next(effect for effect in effects if "same weights" in effect.metric)
    assert again.ours == 1.0
    assert (tmp_path / "good" / "figures" / "online-offline-gap.svg").is_file()
    report = json.loads((tmp_path / "good" / "runs" / "report.json").read_text())
    assert report["proxy_accuracy"] == pytest.approx(effects[1].ours)
    assert claim.run(11, tmp_path / "good", sizes) == effects  # what was left by a run that was cut off is found
    control = claim.weak(11, tmp_path / "weak", sizes)
    assert [effect.control for effect in control] == [True, True]
