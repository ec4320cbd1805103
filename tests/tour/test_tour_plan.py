import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.errors import ArtifactError, ConfigError
from maypole.tour import TourOptions
from maypole.tour.base import Base
from maypole.tour.corpus import load_corpus
from maypole.tour.plan import DOCUMENTS, GENERAL, MAX_PASSES, QUESTIONS, WAYS, Plan, Rates, available, divide
from maypole.tour.probe import probe

IDLE = Rates(
    train_tokens_per_second=6_000, score_tokens_per_second=14_000, reference_tokens_per_second=14_000,
    answers_per_second=250, tokens_a_document=170, rows_a_document=4.0, tokens_a_row=60, tokens_an_instruction_row=35,
)  # fmt: skip
WORK = {"train": 2_500, "held_out": 280, "noise": True, "instruct": True, "general": True, "questions": True}


def test_six_minutes_on_an_idle_machine_are_mostly_learning_and_leave_a_fifth():
    seconds = available(6.0, 20.0)
    assert seconds == 268
    curated, adapted, aligned, served, evaluated = divide(IDLE, seconds, **WORK)
    assert (evaluated.documents, evaluated.general, evaluated.questions) == (280, GENERAL, QUESTIONS)
    assert evaluated.seconds < 60
    assert (curated.documents, curated.noise, curated.kept) == (2_500, 2_500, 2_500)
    assert curated.seconds <= 31
    assert curated.trial_steps >= 20
    assert (served.parts, served.repeats) == (8, 5)
    assert served.seconds <= 13
    assert (aligned.prompts, aligned.samples, aligned.form_rows, aligned.measured) == (128, 4, 600, 64)
    assert aligned.seconds <= 41
    others = evaluated.seconds + curated.seconds + aligned.seconds + served.seconds
    assert 170 < adapted.seconds <= seconds - others + 1
    assert 550 < adapted.instruction_steps <= 600
    assert adapted.examples_per_step == 16
    used = 16 * (adapted.corpus_steps * IDLE.tokens_a_row + adapted.instruction_steps * IDLE.tokens_an_instruction_row)
    watched = 10 * adapted.curve_documents * IDLE.tokens_a_document / IDLE.score_tokens_per_second
    assert adapted.curve_documents == 40
    assert used / IDLE.train_tokens_per_second + watched == pytest.approx(adapted.seconds, abs=1)


def test_a_slow_model_takes_smaller_steps_and_fewer_items():
    slow = dataclasses.replace(
        IDLE, train_tokens_per_second=60, score_tokens_per_second=200, answers_per_second=1, tokens_a_row=200
    )
    curated, adapted, aligned, served, evaluated = divide(slow, available(6.0, 40.0), **WORK)
    assert adapted.examples_per_step == 1
    assert adapted.corpus_steps >= 12
    assert evaluated.documents < 40
    assert adapted.curve_documents <= 2
    assert (curated.trial_steps, curated.examples_per_step, curated.trial_documents) == (4, 1, 8)
    assert curated.documents > 2_000
    assert (served.parts, served.repeats) == (2, 1)
    stages = (curated, adapted, aligned, served, evaluated)
    assert sum(stage.seconds for stage in stages) <= available(6.0, 40.0) + 2
    assert set(dataclasses.astuple(aligned)) == {0}


def test_of_a_large_corpus_more_is_read_than_can_be_learnt_and_no_more():
    curated, adapted, *_ = divide(IDLE, 268, **{**WORK, "train": 1_000_000, "noise": False})
    assert 4_000 < curated.documents < 10_000
    assert curated.tokens_read == 32
    assert curated.kept == round(0.8 * curated.documents)
    assert adapted.documents <= curated.kept


def test_a_small_corpus_is_not_passed_over_more_than_three_times():
    curated, adapted, *_ = divide(IDLE, 268, **{**WORK, "train": 20, "held_out": 5})
    assert (curated.documents, curated.tokens_read) == (20, 256)
    assert adapted.corpus_steps * adapted.examples_per_step <= MAX_PASSES * 20 * IDLE.rows_a_document + 16
    assert adapted.documents == 20


def test_without_instructions_and_questions_only_the_corpus_remains():
    less = {**WORK, "noise": False, "instruct": False, "general": False, "questions": False}
    curated, adapted, aligned, served, evaluated = divide(IDLE, 268, **less)
    assert (aligned.form_rows, aligned.form_steps) == (0, 0)
    assert (curated.noise, curated.rate) == (0, 0.8)
    assert (adapted.instruction_steps, adapted.instruction_rows) == (0, 0)
    assert (evaluated.general, evaluated.questions) == (0, 0)
    assert served.parts == 8


def test_preparation_that_takes_all_leaves_the_stages_some():
    assert available(0.05, 30.0) == pytest.approx(0.9)


@given(
    speed=st.floats(1, 1e6), seconds=st.floats(0.1, 1e4), train=st.integers(8, 10**6), held_out=st.integers(2, 10**5),
    row=st.floats(2, 256), noise=st.booleans(), instruct=st.booleans(), general=st.booleans(), questions=st.booleans(),
)  # fmt: skip
def test_every_plan_can_be_followed(speed, seconds, train, held_out, row, noise, instruct, general, questions):
    rates = dataclasses.replace(IDLE, train_tokens_per_second=speed, score_tokens_per_second=speed, tokens_a_row=row)
    work = {"noise": noise, "instruct": instruct, "general": general, "questions": questions}
    curated, adapted, aligned, served, evaluated = divide(rates, seconds, train=train, held_out=held_out, **work)
    assert 1 <= curated.documents <= train
    assert curated.noise == noise * curated.documents
    assert 1 <= curated.kept <= curated.documents + curated.noise
    assert 32 <= curated.tokens_read <= 256
    assert 1 <= curated.trial_documents <= held_out
    assert curated.trial_steps >= 4
    assert adapted.corpus_steps >= 4
    assert 1 <= adapted.documents <= curated.kept
    assert 1 <= adapted.curve_documents <= 40
    assert (adapted.instruction_steps >= 4) == instruct
    assert (adapted.instruction_rows > 0) == instruct
    if aligned.rounds:
        assert 1 <= aligned.prompts <= (128 if instruct else min(192, curated.kept))
        assert 1 <= aligned.measured <= 64
        assert (aligned.rounds, aligned.samples, aligned.measured_samples) in WAYS
        assert (aligned.form_rows > 0) == (aligned.form_steps > 0) == instruct
    else:
        assert set(dataclasses.astuple(aligned)) == {0}
    assert aligned.round_steps * aligned.examples_per_step >= aligned.prompts
    assert 1 <= served.parts <= held_out
    assert served.repeats >= 1
    assert 1 <= evaluated.documents <= min(held_out, DOCUMENTS)
    assert (evaluated.general > 0) == general
    assert (evaluated.questions > 0) == questions


def test_a_plan_is_read_as_it_was_written(tmp_path):
    curated, adapted, aligned, served, evaluated = divide(IDLE, 268, **WORK)
    plan = Plan(
        asked={"minutes": 6.0}, threads=2, preparation=20.0, rates=IDLE, curate=curated, adapt=adapted,
        align=aligned, serve=served, evaluate=evaluated,
    )  # fmt: skip
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    for text in ("{", "[]", json.dumps({"steps": 3})):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ArtifactError, match="is not the plan of a tour"):
            Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("own", [True, False])
def test_the_probe_measures_every_rate_and_leaves_nothing_behind(own, corpus, model, monkeypatch, capfd):
    monkeypatch.setattr("maypole.tour.probe.SECONDS", 0.01)
    monkeypatch.setattr("maypole.tour.base.SHIPPED_BASE", "village-1M")
    rates = probe(Base.of(None if own else str(model)), load_corpus(corpus), instruct=True, seed=0)
    assert all(value > 0 for value in dataclasses.astuple(rates))
    assert rates.rows_a_document >= 1
    assert capfd.readouterr() == ("", "")


def test_the_command_of_a_tour_says_all_that_is_not_default():
    asked = TourOptions(
        model="my model", corpus=Path("notes"), out=Path("a"), minutes=0.5, seed=3, own_data_only=True, threads=1
    )
    words = ["--model", "my model", "--corpus", "notes", "--out", "a", "--minutes", "0.5", "--seed", "3"]
    assert shlex.split(asked.command) == ["maypole", "tour", *words, "--own-data-only", "--threads", "1"]
    assert TourOptions().command == "maypole tour --out run"


@pytest.mark.parametrize(("field", "value"), [("minutes", 0), ("minutes", float("nan")), ("threads", 0)])
def test_settings_that_cannot_work_are_named(field, value):
    with pytest.raises(ConfigError, match=f"--{field}"):
        TourOptions(**{field: value})
