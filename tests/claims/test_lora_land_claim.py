"""The claim of lora-land's serving half: its world, its rules on the numbers they came from, and a small run of it."""

from collections.abc import Mapping
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from maypole.claims import lora_land as claim
from maypole.claims.adapter_costs import Answered, Load, compared, picture
from maypole.claims.lora_land import PARTS, Household, Sizes, households, words
from maypole.claims.verdict import combine
from maypole.core.progress import set_quiet

SHEET = {
    "0": 2068, "1": 1963, "4": 1960, "8": 1963, "16": 1925, "18": 1605, "25": 1877, "mixed": 719, "in turn": 189,
    "apart": 300, "wide 1": 1900, "wide 25": 600, "decoding 1": 1963, "decoding 25": 1877,
}  # fmt: skip
"""Tokens per CPU second as measured before there was a claim; "apart" and "wide" were not, and are as expected."""


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)


def answered(rates: Mapping[str, float]) -> dict[str, Answered]:
    seconds = {name: 1024 / rate for name, rate in rates.items()}
    return {n: Answered([[7] * 32] * 32, [s / 2 if n == "in turn" else s] * 32, s) for n, s in seconds.items()}


def missed(effects) -> set[str]:
    return {effect["name"] for effect in combine([effects]) if not effect["holds"]}


def test_the_numbers_that_the_thresholds_come_from_support_the_claim():
    assert not missed(compared(answered(SHEET), Load()))


def test_adapters_that_cost_by_their_number_are_found_out():
    found = missed(compared(answered({**SHEET, "25": 900, "decoding 25": 900, "18": 1000}), Load()))
    assert {"25 adapters beside one, decoding", "18 beside PEFT's mixed batch", "one beside 25 adapters"} <= found


def test_a_measurement_that_sees_no_adapters_is_found_out():
    assert missed(compared(answered({**SHEET, "wide 25": 1900}), Load())) == {"25 adapters of rank 64 beside one"}


def test_answers_other_than_pefts_are_found_out():
    found = answered(SHEET)
    found["mixed"] = replace(found["mixed"], tokens=[[8] * 32] * 32)
    assert missed(compared(found, Load())) == {"the same as PEFT says"}


def test_every_household_has_a_name_and_a_cipher_of_its_own():
    found = households(3, 25)
    assert len({h.name for h in found}) == len({h.distance for h in found}) == 25
    assert found == households(3, 25)
    word = words(0, "any", count=1, letters=6)[0]
    assert len({h.written(word) for h in found}) == 25
    assert Household("plain", 0).written([0, 24]) == "a y"
    assert Household("next", 1).written([0, 24]) == "b a"


def test_the_picture_shows_every_way(tmp_path):
    picture(SHEET, tmp_path / "figures")
    said = "".join(ElementTree.parse(tmp_path / "figures" / "adapters.svg").getroot().itertext())
    for label in ("maypole", "PEFT, mixed batch", "PEFT, one adapter at a time", "a process for each"):
        assert label in said


def test_a_small_run_measures_all_and_teaches_ciphers(tmp_path):
    sizes = Sizes(
        households=3, letters=2, model=(2, 64), base_steps=120, adapter_steps=60, batch=64, held_out=12,
        load=Load(
            model=(1, 64), vocabulary=64, adapters=4, some=3, requests=6, prompt=8, new=4, rounds=1, hot=2, active=1,
            cycle=0.0, clients=6, traffic=24,
        ),
    )  # fmt: skip
    effects = claim.serving(1, tmp_path, sizes)
    named = {e.name: e for e in effects}
    assert len({(e.name, e.metric) for e in effects}) == len(effects)
    for name in ("each household by its adapter, the worst", "the same as PEFT says"):
        assert named[name].ours > 0.9, name
    assert next(e for e in effects if e.metric == "share of equal answers").ours == 1.0
    assert named["by another's adapter"].ours < 0.3
    assert named["adapters loaded meanwhile"].ours == 2
    assert (tmp_path / "figures" / "adapters.svg").is_file()


def test_serving_runs_alone_and_the_matrix_is_announced():
    part = PARTS["serving"]
    assert part is not None
    assert part.timed
    assert PARTS["matrix"] is None
