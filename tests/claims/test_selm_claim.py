"""The claim of SELM: its village, its judge, and verdicts on the numbers that its thresholds come from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maypole.claims import selm as claim
from maypole.claims.rumour import NOISE, Judge, Sizes, Village
from maypole.claims.selm import PARTS, Course, rumour
from maypole.claims.selm_table import Table, table
from maypole.claims.verdict import combine
from maypole.core.progress import set_quiet

TINY = Course(rounds=2, each=2, batch=4, steps=1, every=1, world=Sizes(people=8, steps=6, batch=4))
SHEET = {
    "greedy -0.2": {"true": 0.0, "reward": 0.499, "discovered": 0.24},
    "greedy 0": {"true": 0.019, "reward": 0.502, "discovered": 0.35},
    "greedy 0.2": {"true": 0.122, "reward": 0.516, "discovered": 0.50},
    "greedy 0.4": {"true": 0.126, "reward": 0.486, "discovered": 0.51},
    "sample 0": {"true": 0.048, "reward": 0.5, "discovered": 0.35},
    "sample 0.2": {"true": 0.102, "reward": 0.5, "discovered": 0.50},
    "sample 0.4": {"true": 0.108, "reward": 0.5, "discovered": 0.50},
    "iterative DPO": {"true": 0.019, "reward": 0.502, "discovered": 0.35},
}
"""What the sheet that the conditions come from measured, seed 0 where it gives it."""


@pytest.fixture(autouse=True)
def _own_cache_and_quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)


def arms_with(known: dict[str, dict[str, float]]) -> Any:
    """Arms that end as `known` says."""

    class Known(claim.Arms):
        def __init__(self, *given: Any, **settings: Any) -> None:
            self.course, self.before = Course(), {"true": 0.009, "rumour": 0.86}

        def run(self, name: str, method: Any) -> dict[str, float]:
            return {"wellformed": 0.99, **known[name]}

        def keep(self) -> None:
            return None

    return Known


def missed(effects: Any) -> set[str]:
    return {effect["name"] for effect in combine([effects]) if not effect["holds"]}


def test_the_numbers_that_the_thresholds_come_from_support_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "Arms", arms_with(SHEET))
    assert not missed(rumour(0, tmp_path))


def test_optimism_without_effect_misses_and_with_the_wrong_sign_misses_more(tmp_path, monkeypatch):
    flat = {**SHEET, "greedy 0.2": SHEET["greedy 0"]}
    monkeypatch.setattr(claim, "Arms", arms_with(flat))
    assert missed(rumour(0, tmp_path)) == {"alpha 0.2 beside 0", "alpha 0.2 tries more"}
    turned = {**SHEET, "greedy 0.2": SHEET["greedy -0.2"], "greedy -0.2": SHEET["greedy 0.2"]}
    monkeypatch.setattr(claim, "Arms", arms_with(turned))
    assert missed(rumour(0, tmp_path)) == {
        "alpha 0.2 beside 0", "alpha 0.2 tries more", "the wrong sign beside 0", "the wrong sign tries less",
        "alpha 0.2 beside iterative DPO",
    }  # fmt: skip


def test_every_arm_goes_through_the_online_loop_once(tmp_path, monkeypatch):
    effects = rumour(1, tmp_path, TINY)
    assert len(effects) == len({effect.name for effect in effects})
    assert sorted(path.name for path in tmp_path.glob("*/rounds/001/rows.parquet")) == ["rows.parquet"] * 8
    assert (tmp_path / "figures" / "rounds.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curves.json").is_file()
    monkeypatch.setattr(claim, "online", None)  # what is whole is not trained again
    assert rumour(1, tmp_path, TINY) == effects


def test_a_rumour_is_never_the_truth_unless_it_is_told_to_be():
    village = Village(0, Sizes())
    everyone = np.arange(96)
    assert len(village.prompts) == len(set(village.prompts)) == 96
    assert len({prompt.split()[1] for prompt in village.prompts}) == 96  # no two of a family
    assert not (village.truth == village.rumour).any()
    assert (village.rewards[everyone, village.truth] == 1.0).all()
    assert (village.rewards[everyone, village.rumour] == 0.5).all()
    assert ((village.rewards < 0.3).sum(1) == 14).all()
    truthful = Village(0, Sizes(), truthful=True)
    assert (truthful.truth == truthful.rumour).all()
    assert (truthful.rewards[everyone, truthful.truth] == 1.0).all()
    told = village.told(4000)
    share = np.mean([row["completion"] == f" {village.values[village.rumour[village.prompts.index(row['prompt'])]]}"
                     for row in told])  # fmt: skip
    assert share == pytest.approx(0.85 + 0.15 / 16, abs=0.02)


def test_the_judge_prefers_by_bradley_and_terry_and_remembers_who_was_found_out():
    village = Village(0, Sizes())
    judge = Judge(village, seed=0)
    prompt, order = village.prompts[0], np.argsort(village.rewards[0])
    good, better = (village.values[i] for i in order[-4:-2])
    pairs = np.array(judge([prompt] * 8000, [good, better] * 4000)).reshape(-1, 2)
    margin = (village.rewards[0, order[-3]] - village.rewards[0, order[-4]]) / NOISE
    assert (pairs[:, 1] > pairs[:, 0]).mean() == pytest.approx(1 / (1 + np.exp(-margin)), abs=0.02)
    assert (judge.asked, judge.discovered) == (8000, set())
    judge([prompt, prompt], [village.values[village.truth[0]], "nonsense"])
    assert judge.discovered == {0}


def test_the_table_in_small_has_the_same_effects_and_is_the_same_twice(tmp_path):
    size = replace(Table(), questions=40, rounds=3)
    first, again = table(0, tmp_path, size), table(0, tmp_path, size)
    assert first == again
    assert [effect.name for effect in first] == [effect.name for effect in table(1, tmp_path, size)]
    assert all(0 < effect.ours < 10 for effect in first)


def test_the_parts():
    assert list(PARTS) == ["rumour", "truthful", "table"]
