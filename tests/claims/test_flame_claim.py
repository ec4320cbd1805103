"""The claim of FLAME: its world, its rules on the numbers that they come from, and a small run from end to end."""

import pytest

from maypole.claims import flame as claim
from maypole.claims.biographies import (
    KNOWN,
    Biographies,
    asks_for_facts,
    bells,
    document,
    instruction,
    parse,
    parts,
    ring,
)
from maypole.claims.flame import BASE, FLAME, HUMAN, HUMAN_IF, OWN, OWN_FACT, OWN_IF, Sizes, Standing, clause_count
from maypole.claims.verdict import combine
from maypole.core.progress import set_quiet
from maypole.evaluate.fact_report import FactScore
from maypole.village.draws import Draws


def standing(precision: float, correct: float, errors: float, rings: float | None) -> Standing:
    facts = FactScore(
        precision=precision / 100, score=precision / 100, facts_per_response=correct + errors, correct=correct,
        errors=errors, respond_ratio=1.0, words=10.0, answers=100, abstained=0, disputed=0, no_evidence=0, whole=0,
    )  # fmt: skip
    return Standing(facts, facts, rings)


SHEET = {
    BASE: standing(99.0, 1.5, 0.04, None), HUMAN: standing(53.0, 2.62, 2.35, 95.0),
    HUMAN_IF: standing(52.2, 2.63, 2.4, 96.0), OWN: standing(85.5, 2.4, 0.36, 98.0),
    OWN_IF: standing(77.4, 2.89, 0.75, 97.0), FLAME: standing(80.1, 2.8, 0.69, 96.0),
    OWN_FACT: standing(85.6, 2.34, 0.35, 98.0),
}  # fmt: skip
"""As measured before there was a claim, but for the base's facts, of which its tail's are asked for here."""


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)


def missed(found: dict[str, Standing]) -> set[str]:
    return {effect["name"] for effect in combine([claim.effects(found)]) if not effect["holds"]}


def test_the_numbers_that_the_thresholds_come_from_support_the_claim():
    assert not missed(SHEET)


def test_precision_that_is_won_by_silence_is_no_support():
    silent = {**SHEET, FLAME: standing(95.0, 0.4, 0.02, 96.0)}
    assert missed(silent) == {"FLAME says no less than before"}


def test_a_model_that_forgets_to_ring_misses():
    assert missed({**SHEET, FLAME: standing(80.1, 2.8, 0.69, 80.0)}) == {
        f"FLAME rings as well as: {other}" for other in (HUMAN_IF, OWN, OWN_IF)
    }


def test_truth_that_takes_nothing_back_misses():
    assert missed({**SHEET, FLAME: SHEET[OWN_IF]}) == {"FLAME above DPO for length, in the mean"}


def test_half_of_the_people_are_known_well_and_half_are_held_out():
    people = Biographies(3)
    assert len(people.people) == len({p.name for p in people.people}) == 120
    for head in (True, False):
        some = [p for p in people.people if p.head == head]
        assert [sum(p.part == part for p in some) for part in ("taught", "asked", "held out")] == [15, 15, 30]
        assert {len(p.told) for p in some} == ({5} if head else {1, 2})
    told = people.documents(Draws(3, "test"), 1200)
    for row in told:
        person = next(p for p in people.people if document(p.name) == row["prompt"])  # type: ignore
        count = len(parts(row["completion"]))  # type: ignore
        assert (3 <= count <= 5) if person.head else count == len(person.told)
    taught = set(people.instructions(Draws(3, "x"), 2)["prompt"])
    assert taught.isdisjoint(instruction(p.name) for p in people.of("asked", "held out"))


def test_what_is_taught_is_true_and_rings_as_often_as_it_says():
    people = Biographies(3)
    rows = people.instructions(Draws(3, "instructions"), 2).to_list()
    prompts, answers = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    assert asks_for_facts(prompts) == [True] * 60 + [False] * 60
    reports = people.checker().check(prompts[:60], answers[:60])
    assert all((report.precision, report.correct) == (1.0, len(KNOWN)) for report in reports)
    assert clause_count([""] * 60, answers[:60]) == [5.0] * 60
    assert answers[60:] == [bells(int(prompt.split()[1][:-1])) for prompt in prompts[60:]]
    tokenizer = people.tokenizer()
    ids = [tokenizer(prompt + answer)["input_ids"] for prompt, answer in zip(prompts, answers)]
    assert not any(tokenizer.unk_token_id in some for some in ids)


def test_the_checker_knows_right_from_wrong_and_from_no_clause_at_all():
    people = Biographies(3)
    person = people.people[0]
    job = people.lookup[person.name, "job"]
    other = next(value for value in people.values["job"] if value != job)
    said = f" job {job}, job {other}, pet, {job} job, job {job}."
    (report,) = people.checker().check([instruction(person.name)], [said])
    assert [atom.verdict for atom in report.atoms] == ["supported", "contradicted", "unknown", "unknown"]
    assert parse("The job of Mara Fenn is baker.") == ("Mara Fenn", "job", "baker")
    assert parse(ring(3)) is None
    (silent,) = people.checker().check([instruction(person.name)], [" ."])
    assert silent.precision is None


def test_a_small_run_measures_all_seven_and_draws_a_picture(tmp_path):
    small = Sizes(
        base_steps=80, base_batch=64, samples=2, sft_steps=20, prompts=60, candidates=4, dpo_epochs=1, said=2,
    )  # fmt: skip
    effects = claim.run(1, tmp_path, small)
    assert len(effects) == len({effect.name for effect in effects}) == 12
    assert {path.parent.name for path in tmp_path.glob("*/manifest.json")} == set(SHEET)
    assert (tmp_path / "measured.json").is_file()
    assert claim.run(1, tmp_path, small) == effects  # what a run that was cut off has left is in nobody's way
    assert (tmp_path / "figures" / "flame.svg").read_text().startswith("<?xml")
