"""Stage 3: online rounds on the tuned model, against the village's oracle or the user's own texts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from maypole.core.artifact import Artifact
from maypole.data import PROMPT, read
from maypole.evaluate import judges as reader
from maypole.tour import judges
from maypole.tour.align import DRAWN, JUDGES, MEASURED, Found
from maypole.tour.corpus import load_corpus
from maypole.tour.plan import Plan
from maypole.tour.preferences import continuations, described, descriptions, people
from maypole.village.describe import describe_prompt, subject_of
from maypole.village.world import World
from maypole.village.zoo import load_zoo

pytestmark = pytest.mark.usefixtures("_fixed_rates")


def page_of(report: Any) -> Any:
    return next(stage for stage in report.stages if stage.name == "align")


def test_the_stage_is_a_checkpoint_made_by_a_form_and_rounds(own):
    asked, _ = own
    stage = asked.out / "03-align"
    AutoModelForCausalLM.from_pretrained(stage)
    manifest = Artifact.load(stage).manifest
    assert set(manifest["children"]) == {"form", "rounds"}
    plan = Plan.read(asked.out / "plan.json").align
    assert manifest["metrics"]["steps"] == plan.steps
    assert Artifact.load(stage / "rounds").manifest["metrics"]["steps"] == plan.rounds * plan.round_steps
    assert Artifact.load(asked.out / "08-serve").manifest["inputs"]["tuned"]["identity"] == manifest["key"]
    assert Artifact.load(asked.out / "09-evaluate").manifest["inputs"]["tuned"]["identity"] == manifest["key"]


def test_nobody_who_is_measured_is_in_a_training_row(own):
    asked, _ = own
    stage = asked.out / "03-align"
    drawn, measured = ({subject_of(p) for p in read(str(stage / name), PROMPT)["prompt"]} for name in (DRAWN, MEASURED))
    plan = Plan.read(asked.out / "plan.json").align
    assert (len(drawn), len(measured)) == (plan.prompts, plan.measured)
    shown = {subject_of(row["prompt"]) for row in described(200, seed=3)}
    assert not measured & (drawn | shown)
    known = {person.name for person in World(0).head}
    assert set(people()[0]) | set(people()[1]) == known
    assert len(people()[1]) == 64


def test_what_is_found_is_what_the_judge_says_of_the_answers(own):
    asked, report = own
    found = Found.of(asked.out / "03-align")
    plan = Plan.read(asked.out / "plan.json").align
    first, last = found.policies[0], found.policies[-1]
    assert len(found.policies) == plan.rounds + 1
    assert first.won == pytest.approx([0.5] * plan.measured)
    assert first.kl == [0.0] * plan.measured
    assert min(last.kl) >= 0
    n, names = plan.measured_samples, found.columns["prompt"]
    pairs = [(a, b) for a in last.answers[:n] for b in first.answers[:n]]
    said = judges.describes_better([names[0]] * n * n, *map(list, zip(*pairs)))
    assert last.won[0] == pytest.approx(np.mean(np.array(said, dtype=float)))
    assert last.rewards == judges.describes_well([name for name in names for _ in range(n)], list(last.answers))
    page = page_of(report)
    assert f"win rate {last.win_rate.mean:.2f}" in page.finding
    assert f"On {plan.measured} people that no round drew" in page.finding
    assert "the base knows these people's facts" in page.finding
    assert [row[0] for row in page.table.rows][:3] == ["mean reward", "right clauses (share)", "clauses an answer"]
    assert page.examples


def test_the_judges_beside_the_result_are_those_that_judged(own):
    asked, _ = own
    judge: Any = reader.load(f"{asked.out / '03-align' / JUDGES}:describes_better")
    name = people()[0][0]
    right = f" {judges.truth(describe_prompt(name))}."
    asked_of = ([describe_prompt(name)] * 2, [right, " job x."], [" job x.", right])
    assert judge(*asked_of) == judges.describes_better(*asked_of)
    assert judge(*asked_of)[0] > 0.99
    assert judges.in_clauses([describe_prompt(name)], [right]) == {"clauses": [8], "right clauses": [8]}


def test_the_python_form_makes_the_rounds_again(own, tmp_path):
    asked, report = own
    program = page_of(report).repeat_python
    assert f"--judge {asked.out}/03-align/judges.py:describes_better" in page_of(report).repeat_command
    here, found = tmp_path / "rounds", dict[str, Any]()
    exec(program.replace(repr(str(asked.out / "rounds")), repr(str(here))), found)
    again, before = (load_file(folder / "model.safetensors") for folder in (here, asked.out / "03-align"))
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def small_plan(own, **changes):
    return replace(Plan.read(own[0].out / "plan.json").align, **changes)


def test_texts_of_ones_own_are_openings_and_how_they_really_go_on(own, corpus):
    texts, plan = load_corpus(corpus), small_plan(own, form_rows=0, prompts=12, measured=5)
    about = continuations(load_zoo("village-1M"), texts, plan, seed=4)
    assert (len(about.drawn), len(about.measured)) == (12, min(5, len(texts.held_out)))
    for rows, source in ((about.drawn, texts.train), (about.measured, texts.held_out)):
        for row in rows:
            row: Any = row
            assert any(text.startswith(row["prompt"] + row["continuation"]) for text in source["text"])
            assert row["continuation"].startswith((" ", "\n"))
    real = about.drawn["continuation"][:]
    assert about.judge(about.drawn["prompt"][:], real, continuation=real) == [1.0] * 12
    samples = {
        "prompt": ["p"], "completions": [["near", "far", "real"]], "completion_ids": [[[1], [2], [3]]],
        "scores": [[0.4, 0.1, 1.0]], "prompt_ids": [[0]],
    }  # fmt: skip
    row: Any = about.method.rows(Dataset.from_dict(samples))[0]
    assert (row["chosen"], row["rejected"]) == ("real", "far")


def test_the_people_of_the_rounds_are_drawn_by_the_seed(own):
    lm, plan = load_zoo("village-1M"), small_plan(own)
    one, again, other = (descriptions(lm, plan, seed, known=True).drawn["prompt"][:] for seed in (1, 1, 2))
    assert one == again != other


def test_a_model_that_knows_nobody_has_a_shown_description_to_choose(own):
    about = descriptions(load_zoo("village-1M"), small_plan(own), 1, known=False)
    assert about.method.answers == ("shown",)
    assert all(judges.in_clauses(about.drawn["prompt"][:], about.drawn["shown"][:])["clauses"])
