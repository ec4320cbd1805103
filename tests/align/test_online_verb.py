"""`maypole align online`, from the words on the command line to the directory it leaves."""

import json
from pathlib import Path

import pytest

from maypole.align.online_verbs import OnlineOptions
from maypole.core.artifact import Artifact
from maypole.core.config import from_yaml
from maypole.models import load, save
from tests.docs_workplace import examples
from tests.engine.engine_fixtures import lm_of

ROOT = Path(__file__).parents[2]
COMMAND = "align online --quiet"
TRAIN = "--train.examples-per-step 4 --train.learning-rate 1e-2 --train.precision fp32 --max-tokens 5 --n 3 --rounds 2"
JUDGE = '''
def score(prompts, completions, **columns):
    return [-float(sum(c.encode())) / (1 + len(c)) for c in completions]

def prefers(prompts, a, b, **columns):
    return [0.5 if x == y else float(x < y) for x, y in zip(a, b)]
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    save(lm_of("llama"), folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place, model):
    Path("base").symlink_to(model)
    Path("judge.py").write_text(JUDGE)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(8)))
    pairs = [{"prompt": f"number {i}", "chosen": " one", "rejected": " two"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("torn.jsonl").write_text(json.dumps(pairs[0]) + "\n" + json.dumps({**pairs[1], "rejected": None}) + "\n")


def test_both_examples_of_the_help_work(maypole):
    found = examples("align", "online")
    assert len(found) == 3
    for example in found:
        code, out, err = maypole(f"{example} --json --dry-run")
        assert code == 0, err
        plan = json.loads(out)
        assert plan["rows_kept"] == 8
        assert plan["steps"] == (5 if "--rounds 5" in example else 3)
        assert "rounds.json" in plan["files"]
    assert not Path("better").exists()
    assert not Path("better.part").exists()


@pytest.mark.parametrize(
    "method",
    [
        "dpo --judge judge.py:score --temperature 0.7 1 --pair max_random --length-penalty 0.1 --history all "
        "--first-history pairs.jsonl",
        "sppo --judge judge.py:prefers --eta 8", "selm --judge judge.py:score --alpha 0.1",
    ],
)
def test_the_result_loads_and_the_same_command_finds_it(maypole, method: str):
    line = f"--method {method} --model base --data prompts.jsonl --eval-data prompts.jsonl --eval-max-tokens 4 {TRAIN}"
    code, _, err = maypole(f"{line} --out better")
    assert code == 0, err
    artifact = Artifact.load("better")
    assert artifact.manifest["metrics"]["eval_kl"] > 0
    assert artifact.manifest["config"]["reference"] == ("initial" if method.startswith("dpo") else "previous")
    table = json.loads(Path("better", "rounds.json").read_text())
    assert [line["round"] for line in table] == [0, 1]
    load("better")
    before = Path("better", "model.safetensors").stat().st_mtime_ns
    assert maypole(f"{line} --out better")[0] == 0
    assert Path("better", "model.safetensors").stat().st_mtime_ns == before
    assert json.loads(maypole(f"{line} --out better --json --dry-run")[1])["reuses"] == ["better"]


def test_the_recipe_at_full_scale_says_what_the_paper_does():
    config = from_yaml(OnlineOptions, ROOT / "examples" / "rlhf_workflow.yaml")
    assert (config.method, config.n, config.rounds, config.prompts_per_round) == ("dpo", 8, 3, 20_000)
    assert (config.beta, config.reference, config.history, config.workflow.pair) == (0.1, "initial", "none", "max_min")
    train = config.train
    assert (train.learning_rate, train.num_train_epochs, train.examples_per_step) == (5e-7, 2, 128)
    assert (train.optimizer, train.init) == ("fresh", "previous")


def test_the_recipe_of_the_village_plans_its_run(maypole):
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(960)))
    file = ROOT / "examples" / "rlhf_workflow_village.yaml"
    code, out, err = maypole(f"--config {file} --judge judge.py:score --max-tokens 4 --json --dry-run")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["rows_kept"], plan["steps"]) == (960, 5 * 30)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--judge judge.py:score --n 1", "--n"),
        ("--judge judge.py:score --temperature 0.5 0.7 1 --n 2", "1 to 2 with --method dpo"),
        ("--judge judge.py:score --temperature 0.5 1 --method selm --n 4", "1 to 1 with --method selm"),
        ("--judge judge.py:score --pair best", "max_min, max_max"),
        ("--judge judge.py:score --length-penalty=-1", "--length-penalty"),
        ("--judge judge.py:score --history all --method sppo", "nothing with --method sppo"),
        ("--judge judge.py:score --first-history pairs.jsonl", "nothing with --history none"),
        ("--judge judge.py:score --history all --first-history torn.jsonl", 'torn.jsonl row 2, field "rejected"'),
        ("--judge judge.py:score --max-kl 5", "nothing without --eval-data"),
        ("--judge judge.py:score --max-kl 0 --eval-data prompts.jsonl", "above 0"),
        ("--judge judge.py:score --length-unit char --method selm --n 4", "nothing with --method selm"),
        ("--judge judge.py:score --train.init initial", "optimizer fresh"),
        ("--judge judge.py:score --eta 5", "nothing with --method dpo"),
        ("--judge judge.py:score --alpha 0.1", "nothing with --method dpo"),
        ("--judge judge.py:score --method selm --alpha 0.5 --n 2", "below 0.5"),
        ("--judge judge.py:score --method selm --loss simpo --n 2", "holds to a reference"),
        ("--judge judge.py:score --method selm", "chosen"),
        ("--judge judge.py:score --loss kto", "a loss on pairs"),
        ("--judge judge.py:prefers --method sppo --beta 0.1", "nothing with --method sppo"),
        ("--judge judge.py:nobody", "no function 'nobody'"),
        ("--judge judge.py:score --prompts-per-round 9", "at most 8, the number of prompts"),
        ("--judge judge.py:score --train.optimizer fresh --train.round-learning-rates 1e-3", "one for each round"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sampled(maypole, words: str, says: str):
    code, _, err = maypole(f"--model base --data prompts.jsonl --out better {words}")
    assert code == 2
    assert says in err
    assert not Path("better.part").exists()
