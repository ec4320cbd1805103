"""`maypole train sft` and `maypole train pretrain`, from the words on the command line to the directory they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from maypole.core.artifact import Artifact
from maypole.core.config import from_yaml
from maypole.core.lock import DirectoryLock
from maypole.models import load, save
from maypole.train.source import Source
from maypole.train.verbs import PretrainOptions, SftOptions
from tests.engine.engine_fixtures import lm_of
from tests.models.conftest import as_a_stranger_reads, logits

COMMAND = "train"
EXAMPLES = Path(__file__).parents[2] / "examples"
COMMON = "--examples-per-step 4 --save-steps 2 --logging-steps 1 --precision fp32"
STEPS = f"{COMMON} --max-steps 4 --learning-rate 1e-2"
CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes" * (1 + i % 3)}]}
    for i in range(12)
]
ANSWERS = [{"prompt": f"q{i}", "completion": " no" * (i % 4)} for i in range(12)]
TEXTS = [{"text": f"note {i} says little"} for i in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `llama` and `gpt2`, and `new` that has a config and a tokenizer only."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt2"):
        save(lm_of(family), folder / family)
    shutil.copytree(folder / "llama", folder / "new", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(autouse=True)
def _here(place, models):
    for name in ("llama", "gpt2", "new"):
        Path(name).symlink_to(models / name)
    for name, rows in (("chats", CHATS), ("answers", ANSWERS), ("texts", TEXTS)):
        _rows(f"{name}.jsonl", rows)


def _rows(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _of(path: str | Path) -> torch.Tensor:
    lm = load(path, dtype="float32")
    return logits(lm.model, lm.tokenizer)


def _differs(a: str | Path, b: str | Path) -> bool:
    return not torch.equal(_of(a), _of(b))


def test_every_kind_of_run_leaves_what_transformers_and_peft_read_alone(maypole, tmp_path):
    for line in (
        f"sft --model llama --data chats.jsonl --out full {STEPS}",
        f"sft --model gpt2 --data answers.jsonl --out lora {STEPS} --peft.type lora --peft.r 4",
        f"sft --model gpt2 --adapter lora --data answers.jsonl --out further {STEPS} --seed 1",
        f"sft --model lora --data chats.jsonl --out anew {STEPS} --peft.target-modules c_attn c_proj",
        f"pretrain --model new --data texts.jsonl --out fresh {STEPS}",
        f"pretrain --model llama --data texts.jsonl --out half {STEPS} --dtype bfloat16",
    ):
        assert maypole(line)[0] == 0, line
    made = ["full", "lora", "further", "anew", "fresh", "half"]
    for name in made:
        weights = "adapter_model" if name in ("lora", "further", "anew") else "model"
        records = ("manifest.json", "config.yaml", "metrics.jsonl", "run.log", "README.md")
        for file in (f"{weights}.safetensors", "tokenizer.json", *records):
            assert Path(name, file).is_file(), (name, file)
        assert not Path(f"{name}.part").exists()
        lines = Path(name, "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
        assert Artifact.load(name).manifest["metrics"]["steps"] == 4
    for before, after in (("llama", "full"), ("gpt2", "lora"), ("lora", "further"), ("lora", "anew")):
        assert _differs(before, after)
    found = as_a_stranger_reads([tmp_path / name for name in made], tmp_path)
    for name in made:
        assert torch.allclose(found[name], _of(name), atol=1e-5), name


def test_weights_from_nothing_depend_on_the_seed_and_are_stored_as_asked(maypole):
    line = f"pretrain --model new --data texts.jsonl {COMMON} --max-steps 1"
    for out, more in (("a", "--seed 1"), ("b", "--seed 1 --threads 1"), ("c", "--seed 2"), ("d", "--dtype bfloat16")):
        assert maypole(f"{line} --out {out} {more}")[0] == 0
    assert not _differs("a", "b")
    assert _differs("a", "c")
    assert {t.dtype for t in load_file("d/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("more", ["", " --peft.type lora"])
def test_a_run_that_was_interrupted_goes_on_by_the_same_command_and_ends_the_same(maypole, monkeypatch, more):
    line = f"sft --model llama --data chats.jsonl --eval-data answers.jsonl {COMMON} --max-steps 6{more}"
    assert maypole(f"{line} --out whole")[0] == 0
    real = Source.step

    def interrupted(self: Source, index: int):
        if index == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "step", interrupted)
        code, _, err = maypole(f"{line} --out o")
    assert code == 130
    assert err.endswith(f"stopped. Continue:  maypole train {line} --out o\n")
    assert json.loads(Path("o.part/manifest.json").read_text())["state"] == "interrupted"
    assert max(p.name for p in Path("o.part/checkpoints").glob("step-*")) == "step-00000003"
    plan = json.loads(maypole(f"{line} --out o --dry-run --json")[1])
    assert plan["reuses"] == ["o.part"]
    assert maypole(f"{line} --out o")[0] == 0
    weights = "adapter_model" if more else "model"
    assert Path("o", f"{weights}.safetensors").read_bytes() == Path("whole", f"{weights}.safetensors").read_bytes()
    whole, again = (Artifact.load(name).manifest["metrics"] for name in ("whole", "o"))
    assert again["eval_loss"] == whole["eval_loss"]


def test_a_finished_run_is_returned_without_loading_anything_and_another_is_refused(maypole, monkeypatch):
    line = f"sft --model llama --data chats.jsonl --out o {STEPS}"
    first = maypole(line)[1]
    with monkeypatch.context() as patch:
        patch.setattr("maypole.models.loading.load", None)
        code, out, _ = maypole(f"{line} --tokens-per-batch 64 --eval-steps 0")
        assert (code, out) == (0, first)
        assert json.loads(maypole(f"{line} --dry-run --json")[1])["reuses"] == ["o"]
    weights = Path("o/model.safetensors").read_bytes()
    for more in ("", "--dry-run"):
        code, _, err = maypole(line.replace("1e-2", "1e-4") + f" --peft.type lora {more}")
        assert code == 2
        assert "o: holds the result of another command" in err
        assert "learning_rate: 0.01 then, 0.0001 now" in err
        assert "--force" in err
    _rows("chats.jsonl", CHATS[:8])
    assert "input data: its content" in maypole(line)[2]
    assert Path("o/model.safetensors").read_bytes() == weights
    assert maypole(f"{line} --force")[0] == 0
    assert Path("o/model.safetensors").read_bytes() != weights
    assert sorted(p.name for p in Path().glob("o*")) == ["o"]


def test_of_two_processes_on_one_output_the_second_is_told(maypole):
    lock = DirectoryLock.take(Path("o.part"))
    code, _, err = maypole(f"sft --model llama --data chats.jsonl --out o {STEPS}")
    assert code == 2
    assert f"o.part: another process is working on it (pid {os.getpid()})" in err
    lock.release()


def test_the_settings_that_a_result_keeps_make_it_again(maypole):
    line = f"sft --model llama --data chats.jsonl answers.jsonl --mix 3 1 --out o {STEPS} --peft.type lora"
    schedule = "--lr-scheduler-type warmup_stable_decay --lr-scheduler-kwargs.num_decay_steps 2"
    assert maypole(f"{line} --peft.options.use_rslora true {schedule}")[0] == 0
    kept = from_yaml(SftOptions, Path("o/config.yaml"))
    assert kept.peft is not None
    assert kept.peft.options == {"use_rslora": True}
    assert kept.lr_scheduler_kwargs == {"num_decay_steps": 2}
    assert maypole("sft --config o/config.yaml")[0] == 0
    assert maypole("sft --config o/config.yaml --out again")[0] == 0
    assert Artifact.load("again").key == Artifact.load("o").key


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        ([{"instruction": "q", "input": "x", "output": "a"}], ""),
        ([{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}], ""),
        ([{"question": "q", "answer": "a"}], "--columns prompt=question completion=answer"),
        ([{"chat": CHATS[0]["messages"]}], "--columns messages=chat"),
    ],
)
def test_rows_of_known_shapes_are_learnt(maypole, rows, flags):
    _rows("rows.jsonl", rows * 5)
    code, out, err = maypole(f"sft --model llama --data rows.jsonl {flags} --out o {STEPS} --dry-run --json")
    assert code == 0, err
    assert json.loads(out)["rows_kept"] == 5


def test_one_source_of_chats_makes_chats_of_all(maypole):
    assert maypole(f"sft --model llama --data answers.jsonl chats.jsonl --out o {STEPS}")[0] == 0
    assert Artifact.load("o").manifest["metrics"]["dropped"] == {"empty completion": 3}


def test_a_chat_template_is_given_as_a_file_and_goes_into_the_result(maypole, models):
    bare = Path("bare")
    shutil.copytree(models / "llama", bare, ignore=shutil.ignore_patterns("chat_template.jinja"))
    line = f"sft --model bare --data chats.jsonl --out o {STEPS}"
    code, _, err = maypole(line)
    assert code == 2
    assert "the tokenizer has no chat template" in err
    assert "--chat-template FILE" in err
    assert not list(Path().glob("o*"))
    Path("t.jinja").write_text("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    assert maypole(f"{line} --chat-template t.jinja")[0] == 0
    assert load("o").tokenizer.chat_template == Path("t.jinja").read_text()


def test_dry_run_tells_the_plan_and_writes_nothing(maypole):
    before = sorted(Path().iterdir())
    line = "sft --model llama --data answers.jsonl --out o --examples-per-step 2 --num-train-epochs 3 --dry-run --json"
    plan = json.loads(maypole(line)[1])
    assert plan["rows_kept"] == 9
    assert plan["rows_dropped"] == {"empty completion": 3}
    assert plan["steps"] == 14  # 27 rows in all
    assert plan["minutes"] >= 0
    assert plan["peak_memory_bytes"] > 1_000_000
    assert {"model.safetensors", "manifest.json", "config.yaml", "metrics.jsonl", "run.log"} <= set(plan["files"])
    assert sorted(path for path in Path().iterdir() if path.name != "cache") == before
    assert maypole(line.replace("--dry-run", "--quiet"))[0] == 0
    assert Artifact.load("o").manifest["metrics"]["steps"] == 14


def test_dry_run_counts_the_steps_of_all_rows_though_it_reads_a_thousand(maypole):
    _rows("many.jsonl", [ANSWERS[i % 2] for i in range(2400)])
    plan = json.loads(maypole("sft --model llama --data many.jsonl --out o --dry-run --json")[1])
    assert (plan["rows_kept"], plan["rows_dropped"]) == (500, {"empty completion": 500})
    assert plan["steps"] == 38  # 1,200 rows by 32


@pytest.mark.parametrize(("verb", "file"), [("sft", "sft_lora.yaml"), ("pretrain", "pretrain.yaml")])
def test_the_example_files_run(maypole, verb, file):
    data = "chats.jsonl" if verb == "sft" else "texts.jsonl texts.jsonl"
    where = f"--model {'llama' if verb == 'sft' else 'new'} --data {data} --eval-data {data.split()[0]} --out o"
    code, out, err = maypole(f"{verb} --config {EXAMPLES / file} {where} --dry-run --json")
    assert code == 0, err
    settings = yaml.safe_load((EXAMPLES / file).read_text())
    assert json.loads(out)["steps"] == settings.get("max_steps", 1)
    kind = SftOptions if verb == "sft" else PretrainOptions
    assert from_yaml(kind, EXAMPLES / file).learning_rate == settings["learning_rate"]
    shorter = "--max-steps 2 --lr-scheduler-kwargs.num_decay_steps 1" if verb == "pretrain" else ""
    assert maypole(f"{verb} --config {EXAMPLES / file} {where} {shorter}")[0] == 0


@pytest.fixture
def broken(models):
    """Models that lack something."""
    for name, lacks in (("no-tokenizer", "tokenizer*"), ("no-config", "config.json"), ("no-weights", "*.safetensors")):
        shutil.copytree(models / "llama", name, ignore=shutil.ignore_patterns(lacks))
    shutil.copytree(models / "llama", "strange")
    config = json.loads(Path("strange/config.json").read_text())
    Path("strange/config.json").write_text(json.dumps(config | {"model_type": "perceptron"}))
    shutil.copytree(models / "llama", "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(models / "llama" / "model.safetensors")
    first = "model-00001-of-00002.safetensors"
    save_file(dict(list(weights.items())[:3]), f"shards/{first}")
    index = {name: first if i < 3 else first.replace("1-of", "2-of") for i, name in enumerate(weights)}
    Path("shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    Path("empty.jsonl").write_text("")
    Path("cut.jsonl").write_text(json.dumps(CHATS[0]) + '\n{"messages": [\n')
    Path("null.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": null}\n')
    Path("latin.jsonl").write_bytes('{"prompt": "q", "completion": "é"}\n'.encode("latin-1"))
    Path("binary.jsonl").write_bytes(bytes(range(256)))
    Path("picture.png").write_bytes(b"\x89PNG")
    Path("bad.jinja").write_text("{% for %}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sft --data none.jsonl", "none.jsonl: no such file or folder"),
        ("sft --data empty.jsonl", "empty.jsonl: there are no rows in it"),
        ("sft --data cut.jsonl", "cut.jsonl row 2"),
        ("sft --data null.jsonl", 'null.jsonl row 2, field "completion"'),
        ("sft --data latin.jsonl", "latin.jsonl"),
        ("sft --data binary.jsonl", "binary.jsonl"),
        ("sft --data picture.png", "picture.png: files ending in '.png' cannot be read"),
        ("sft --data texts.jsonl", "texts.jsonl: no messages, and no prompt with a completion; found text"),
        ("sft --data texts.jsonl", "hint: for texts: maypole train pretrain"),
        ("pretrain --data answers.jsonl", 'answers.jsonl: no column "text"'),
        ("sft --data chats.jsonl --mix 1 2", "--mix: (1.0, 2.0) does not work"),
        ("sft --data chats.jsonl --columns messages", "--columns: 'messages' does not work"),
        ("sft --data chats.jsonl --eval-data none.jsonl", "none.jsonl: no such file or folder"),
        ("sft --data chats.jsonl --eval-steps 2", "--eval-steps: 2 does not work"),
        ("sft --data chats.jsonl --max-length 3", "none of 12 rows can teach anything (prompt fills max_length: 12)"),
        ("sft --data chats.jsonl --chat-template none.jinja", "none.jinja: cannot be read"),
        ("sft --data chats.jsonl --chat-template bad.jinja", "the chat template cannot render this conversation"),
        ("sft --data chats.jsonl --model strange", "model family 'perceptron' lacks"),
        ("sft --data chats.jsonl --model no-tokenizer", "no-tokenizer: it has no tokenizer"),
        ("sft --data chats.jsonl --model no-config", "no-config: config.json is missing"),
        ("sft --data chats.jsonl --model no-weights", "no-weights: it has no weights"),
        ("pretrain --data texts.jsonl --model no-weights --adapter lora", "no-weights: has no weights that an adapter"),
        ("sft --data chats.jsonl --model shards", "shards: 1 of 2 shards are missing: model-00002"),
        ("sft --data chats.jsonl --model nowhere", "nowhere: no such directory"),
        ("sft --data chats.jsonl --adapter llama", "llama: adapter_config.json is missing"),
        ("sft --data chats.jsonl --peft.type lorra", "--peft.type: 'lorra' does not work"),
        ("sft --data chats.jsonl --peft.target-modules nose", "--peft.target-modules: no adapter can be made"),
        ("sft --data chats.jsonl --lr-scheduler-kwargs.steps 3", "--lr-scheduler-kwargs: {'steps': 3} does not work"),
        ("sft --data chats.jsonl --quantization int4", "--quantization: 'int4' does not work"),
        ("sft --data chats.jsonl --out chats.jsonl", "chats.jsonl: is a file"),
        ("sft --data chats.jsonl --out chats.jsonl/o", "chats.jsonl/o.part: lies below a file"),
        ("sft", "--data"),
    ],
)
def test_wrong_input_exits_2_with_one_paragraph_and_leaves_nothing(broken, maypole, line, said):
    given = f"{line} {'' if '--model' in line else '--model llama'} {'' if '--out' in line else '--out o'}"
    code, out, err = maypole(f"{given} --quiet")
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not list(Path().glob("o*"))
    assert not Path("chats.jsonl.part").exists()


def test_a_directory_that_cannot_be_written_is_named(maypole, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("maypole.core.lock.open", refuse, raising=False)
    code, _, err = maypole(f"sft --model llama --data chats.jsonl --out o {STEPS}")
    assert code == 2
    assert "o.part: cannot be written" in err


def test_a_disk_that_fills_up_exits_3_leaves_no_result_and_the_same_command_goes_on(maypole):
    line = f"sft --model llama --data chats.jsonl --out o {STEPS}"
    program = """
import resource, sys
import maypole.train.fit
from maypole.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(run(sys.argv[1:]))
"""
    words = [sys.executable, "-c", program, "train", *line.split()]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert "no space left to write" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not Path("o").exists()
    assert not list(Path("o.part/checkpoints").glob("step-????????"))
    assert maypole(line)[0] == 0
