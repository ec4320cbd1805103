"""Stage 8: the tuned model served, and a program of many calls on it."""

import json
from pathlib import Path

import pytest

from maypole.core.artifact import Artifact
from maypole.tour.base import Base
from maypole.tour.corpus import load_corpus
from maypole.tour.plan import ServePlan
from maypole.tour.serve import FILE, serve
from tests.tour.test_tour import words

pytestmark = pytest.mark.usefixtures("_fixed_rates")


def test_one_program_says_what_its_calls_say_apart_and_computes_less(own):
    asked, report = own
    found = json.loads((asked.out / "08-serve" / FILE).read_bytes())
    shared, apart = found["shared"][-1], found["apart"][-1]
    assert found["model"] == "base"
    assert len(shared["said"]) == len(found["parts"]) + 1 == len(found["graph"]["nodes"])
    assert apart["reused"] == 0
    assert shared["reused"] > 60 * (len(found["parts"]) - 1)
    assert shared["computed"] < apart["computed"]
    assert {node["state"] for node in found["graph"]["nodes"]} == {"done"}
    assert [node["column"] for node in found["graph"]["nodes"]][-1] == 1
    page = next(stage for stage in report.stages if stage.name == "serve")
    assert f"{shared['computed']:,} prompt tokens were computed" in page.finding
    assert page.repeat_command == f"maypole serve {asked.out}/03-align"
    assert "too small to write a good summary" in words(asked.out / "report.html")


def test_a_model_without_near_ties_says_the_same_both_ways(own, tmp_path: Path):
    asked, _ = own
    made = Artifact.open(tmp_path / "served", kind="tour/serve")
    with made:
        plan = ServePlan(seconds=1, parts=2, repeats=1)
        serve(Base.of(None), load_corpus(asked.corpus), plan, Artifact.load(asked.out / "02-adapt"), made)
    found = json.loads((tmp_path / "served" / FILE).read_bytes())
    shared, apart = found["shared"][0], found["apart"][0]
    assert shared["said"] == apart["said"]
    assert shared["computed"] + shared["reused"] == apart["computed"]


def test_an_adapter_is_served_as_a_model_beside_its_base(tmp_path: Path, corpus, model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapted"))
    adapted = Artifact.open(tmp_path / "stage", kind="tour/adapt")
    with adapted:
        for file in (tmp_path / "adapted").iterdir():
            file.rename(adapted.path / file.name)
        adapted.finish({})
    made = Artifact.open(tmp_path / "served", kind="tour/serve")
    with made:
        plan = ServePlan(seconds=1, parts=3, repeats=1)
        serve(Base.of(str(model)), load_corpus(corpus), plan, Artifact.load(tmp_path / "stage"), made)
    found = json.loads((tmp_path / "served" / FILE).read_bytes())
    assert found["model"] == "tuned"
    assert found["shared"][0]["said"] == found["apart"][0]["said"]
