"""`maypole align flame`, from the words on the command line to the directory it leaves."""

import json
from pathlib import Path

import pytest

from maypole.core.artifact import Artifact
from maypole.models import load, save
from tests.align.flame_fixtures import base
from tests.docs_workplace import examples

COMMAND = "align flame --quiet"
TRAIN = "--sft.max-steps 2 --sft.examples-per-step 4 --dpo.max-steps 2 --dpo.examples-per-step 4"
SHORT = f"{TRAIN} --demonstrations 1 --samples 2 --n 3 --max-tokens 5"
JUDGE = """
def score(prompts, completions, **columns):
    return [-float(sum(c.encode())) / (1 + len(c)) for c in completions]
"""
FACTS = """
from maypole.evaluate import AtomicChecker

def even(facts, evidence):
    return [sum(fact.encode()) % 2 == 0 for fact in facts]

def halves(topics, texts):
    return [[text[: len(text) // 2], text[len(text) // 2 :]] for text in texts]

def factual(prompts):
    return [prompt.startswith("Who") for prompt in prompts]

checker = AtomicChecker(halves, even)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(base(max_position_embeddings=4096), folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place, model):
    Path("base").symlink_to(model)
    Path("judge.py").write_text(JUDGE)
    Path("facts.py").write_text(FACTS)
    Path("find.py").write_text("def search(query, k):\n    return [query] * k\n")
    rows = [{"prompt": f"{'Who is' if i % 2 else 'Ring'} {i}", "completion": f" answer {i}"} for i in range(8)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("known.jsonl").write_text(json.dumps({"title": "one", "text": "One is one."}) + "\n")


def test_both_examples_of_the_help_work(maypole):
    found = examples("align", "flame")
    assert len(found) == 2
    for example in found:
        code, out, err = maypole(f"{example} --json --dry-run")
        assert code == 0, err
        plan = json.loads(out)
        assert plan["rows_kept"] == 8
        assert plan["steps"] == 2
        assert {"sft.parquet", "pairs.parquet"} <= set(plan["files"])
    assert not Path("true").exists()
    assert not Path("true.part").exists()


def test_the_result_loads_and_the_same_command_finds_it(maypole):
    own = "--checker facts.py:checker --classify facts.py:factual --eval-data asked.jsonl --sft.peft.type lora"
    line = f"--model base --data asked.jsonl --judge judge.py:score {own} {SHORT}"
    code, _, err = maypole(f"{line} --out true")
    assert code == 0, err
    metrics = Artifact.load("true").manifest["metrics"]
    assert metrics["fact_based"] == 4
    assert {"before_precision", "sft_errors", "after_respond_ratio"} <= set(metrics)
    assert load("true").adapters
    before = Path("true", "adapter_model.safetensors").stat().st_mtime_ns
    assert maypole(f"{line} --out true")[0] == 0
    assert Path("true", "adapter_model.safetensors").stat().st_mtime_ns == before
    assert json.loads(maypole(f"{line} --out true --json --dry-run")[1])["reuses"] == ["true"]


def test_a_model_may_classify_take_apart_and_check(maypole):
    line = f"--model base --data asked.jsonl --judge judge.py:score --evidence known.jsonl {SHORT} --out true"
    code, _, err = maypole(line)
    assert code == 0, err
    assert Path("true", "model.safetensors").is_file()
    assert Path("cache", "facts", "facts.sqlite").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "documents or a retriever"),
        ("--evidence known.jsonl --n 1", "--n"),
        ("--evidence nothing.jsonl", "nothing.jsonl"),
        ("--checker facts.py:checker", "--classify"),
        ("--checker facts.py:even --classify facts.py:factual", "is no checker"),
        ("--evidence known.jsonl --judge-weights 1 2", "--judge-weights"),
        ("--evidence known.jsonl --dpo.peft.type lora", "goes on learning"),
        ("--evidence known.jsonl --columns prompt", "NAME=COLUMN"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_drawn(maypole, words: str, says: str):
    code, _, err = maypole(f"--model base --data asked.jsonl --judge judge.py:score --out true {words}")
    assert code == 2
    assert says in err
    assert not Path("true.part").exists()
