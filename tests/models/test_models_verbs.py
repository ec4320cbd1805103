import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError
from maypole.models import PeftOptions, load, new_adapter, save
from maypole.models.family_tree import family_tree
from maypole.models.verbs import ExportOptions, InfoOptions, MergeOptions, info
from tests.models.conftest import logits

COMMAND = "models"
pytestmark = pytest.mark.usefixtures("place")
MAYPOLE_S_OWN = {"manifest.json", "config.yaml", "run.log", "metrics.jsonl", ".lock"}


@pytest.fixture
def base(make) -> Path:
    return make("llama", name="base")


@pytest.fixture
def adapted(base, tmp_path) -> Path:
    """An adapter with weights that matter, in a directory without a manifest."""
    lm = new_adapter(load(base), PeftOptions(r=4, target_modules=("q_proj", "down_proj")), seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    save(lm, tmp_path / "adapted")
    return tmp_path / "adapted"


def _artifact(name: str, kind: str, inputs: dict, metrics: dict, model=None, **config) -> Path:
    """A finished result as a command would leave it, with `model` saved in it."""
    with Artifact.open(name, kind=kind, inputs=inputs, config=config or None) as artifact:
        if model is not None:
            save(model, artifact.path)
        artifact.finish(metrics)
    return artifact.path


def test_info_of_a_checkpoint(base, maypole):
    code, out, err = maypole("info base")
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    parameters = sum(p.numel() for p in load(base).model.parameters())
    assert f"{parameters:,}" in lines["parameters"]
    for name, value in (
        ("family", "llama"), ("layers", "3 of width 32"), ("dtype", "float32"), ("vocabulary", "97 (tokenizer 97)"),
        ("context", "512 tokens"), ("chat template", "yes"), ("packed execution", "yes"), ("block views", "yes"),
    ):  # fmt: skip
        assert lines[name].rstrip().endswith(value), name
    assert "base  (checkpoint)" in out


def test_info_reads_no_weights_beyond_their_headers(base, maypole, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", None)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    assert maypole("info --model base --json")[0] == 0


def test_info_says_why_a_family_cannot_be_packed(make, maypole):
    path = make("llama", name="odd")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "codegen", "n_layer": 3, "n_embd": 32}))
    facts = json.loads(maypole("info odd --json")[1])["model"]
    assert facts["packed"].startswith("no: it lacks a replaceable attention")
    assert facts["blocks"].startswith("no: there are views for llama, mistral")


def test_info_of_an_adapter_shows_its_facts_its_base_and_where_it_comes_from(adapted, base, maypole):
    out = maypole("info adapted")[1]
    assert "lora, 1,728 parameters, float32" in out
    assert f"{base}" in out
    assert out.index("base  (checkpoint)") < out.index("adapted  (adapter)  from base")
    assert "lora adapter of rank 4 on down_proj, q_proj" in out
    document = json.loads(maypole("info adapted --json")[1])
    assert document["adapter"]["target_modules"] == ["down_proj", "q_proj"]
    assert document["adapter"]["settings"]["r"] == 4
    assert document["model"]["family"] == "llama"
    assert [(s["name"], s["made_from"]) for s in document["family"]] == [("base", []), ("adapted", ["base"])]
    beside = json.loads(maypole("info --model base --adapter adapted --json")[1])
    assert beside["adapter"] == document["adapter"]


def test_info_of_an_adapter_without_its_base_says_so(adapted, base, maypole):
    shutil.rmtree(base)
    code, out, _ = maypole("info adapted")
    assert code == 0
    assert "note  its base model is not on this disk" in out
    assert f"{base}  (gone)" in out


def _life(base: Path) -> None:
    """base -> pruned corpus -> adapter -> merged and aligned model, as commands would leave them."""
    Path("corpus.jsonl").write_text('{"text": "a"}\n')
    _artifact("pruned", "rows", {"data": "corpus.jsonl"}, {"rows": 700, "dropped": {"long": 3}})
    lm = new_adapter(load(base), PeftOptions(r=2), seed=0)
    _artifact("adapter", "train", {"model": str(base), "data": ("pruned",)}, {"loss": 1.25, "steps": 50}, lm, rate=1)
    _artifact("aligned", "train", {"model": "adapter", "data": "pruned"}, {"win_rate": 0.61}, load(base))


def test_the_family_tree_follows_manifests_from_the_base_to_the_aligned_model(base):
    _life(base)
    steps = family_tree("aligned")
    assert [(s.name, s.kind, s.made_from) for s in steps] == [
        ("corpus.jsonl", "file", ()),
        ("pruned", "rows", ("corpus.jsonl",)),
        ("base", "checkpoint", ()),
        ("adapter", "train", ("pruned", "base")),
        ("aligned", "train", ("pruned", "adapter")),
    ]
    assert [s.numbers for s in steps[1::2]] == [{"rows": 700}, {"loss": 1.25, "steps": 50}]
    assert steps[3].changed.startswith("lora adapter of rank 2 on ")
    assert steps[4].changed == "all weights"
    assert all(s.note == "" for s in steps)


def test_the_family_tree_is_the_same_from_elsewhere_and_after_the_whole_tree_moved(base, tmp_path, monkeypatch):
    _life(base)
    monkeypatch.chdir("/")
    kinds = [s.kind for s in family_tree(tmp_path / "aligned")]
    assert kinds == ["file", "rows", "checkpoint", "train", "train"]
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    steps = family_tree(moved / "aligned")
    assert [s.kind for s in steps] == kinds
    assert Path.cwd() / steps[2].name == moved / "base"
    moved.rename(tmp_path)


def test_the_family_tree_stops_with_a_note_where_a_parent_is_gone_or_has_changed(base, maypole):
    _life(base)
    Path("corpus.jsonl").write_text("other\n")
    shutil.rmtree(base)
    notes = {s.name: (s.kind, s.note) for s in family_tree("aligned")}
    assert notes["corpus.jsonl"] == ("file", "its content has changed since")
    gone = ("gone", "no longer where it was; its own ancestors are unknown")
    assert [value for name, value in notes.items() if name.endswith("base")] == [gone]
    shutil.rmtree("adapter")
    assert [s.kind for s in family_tree("aligned")] == ["file", "rows", "gone", "train"]
    assert "note: no longer where it was" in maypole("info aligned")[1]


def test_the_family_tree_names_hub_models_and_models_made_from_nothing(base, tokenizer):
    lm = load(base)
    lm.name, lm.fingerprint = "owner/name", "0" * 40
    _artifact("tuned", "train", {"model": lm}, {}, lm)
    lm.name, lm.fingerprint = "new llama", "created:abc"
    _artifact("trained", "train", {"model": lm}, {}, lm)
    assert next((s.name, s.kind) for s in family_tree("tuned")) == ("owner/name", "named, not stored here")
    assert next((s.name, s.kind) for s in family_tree("trained")) == ("new llama", "created from nothing")


def test_the_family_tree_survives_manifests_that_are_broken_or_go_round_in_circles(base):
    _life(base)
    manifest = Path("adapter/manifest.json")
    document = json.loads(manifest.read_text())
    document["inputs"]["model"]["path"] = "../aligned"
    manifest.write_text(json.dumps(document))
    assert {s.name for s in family_tree("aligned")} == {"corpus.jsonl", "pruned", "adapter", "aligned"}
    manifest.write_text("{")
    assert {s.name: s.note for s in family_tree("aligned")}["adapter"].endswith("is not valid JSON")


def test_info_is_kept_when_a_place_is_named(base, maypole):
    assert maypole("info base --out kept")[0] == 0
    kept = json.loads(Path("kept/info.json").read_text())
    assert kept["model"]["family"] == "llama"
    assert Artifact.load("kept").manifest["kind"] == "model-info"
    assert maypole("info base --out kept")[0] == 0
    code, out, _ = maypole("info base --out other --dry-run")
    assert (code, out.split()) == (0, ["files", "info.json"])
    assert not Path("other").exists()


def test_info_is_a_python_function_too(base):
    facts = info(str(base))
    assert facts == info(config=InfoOptions(model=str(base)))


def test_merge_adds_the_adapter_and_names_its_parents(base, adapted, maypole):
    code, out, _ = maypole(f"merge --model {base} --adapter adapted --out merged")
    assert code == 0
    assert "result  merged" in out
    lm, whole = load("adapted"), load("merged")
    assert torch.allclose(logits(whole.model, whole.tokenizer), logits(lm.model, lm.tokenizer), atol=1e-5)
    assert whole.adapters == ()
    card = Path("merged/README.md").read_text()
    assert card.startswith("---\nbase_model: base\nlibrary_name: transformers\n")
    assert str(base.parent) not in card.split("Made by:")[0]
    steps = family_tree("merged")
    assert [(s.name, s.kind) for s in steps] == [("base", "checkpoint"), ("adapted", "adapter"), ("merged", "merge")]
    assert set(steps[-1].made_from) == {"base", "adapted"}
    assert maypole(f"merge --model {base} --adapter adapted --out merged")[0] == 0


def test_merge_takes_an_adapter_directory_alone_and_a_dtype(base, adapted, maypole):
    assert maypole("merge --model adapted --out merged --dtype bfloat16 --max-shard-size 20KB")[0] == 0
    shards = sorted(Path("merged").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {t.dtype for shard in shards for t in load_file(shard).values()} == {torch.bfloat16}
    assert [(s.name, s.kind) for s in family_tree("merged")] == [
        ("base", "checkpoint"), ("adapted", "adapter"), ("merged", "merge"),
    ]  # fmt: skip


def test_export_of_a_result_has_nothing_of_maypole_s_own(base, maypole):
    _life(base)
    Path("aligned/README.md").write_text("---\nlicense: mit\n---\n")
    code, out, _ = maypole("export --model aligned --out clean --json")
    assert code == 0
    files = {file.name for file in Path("clean").iterdir()}
    assert not files & MAYPOLE_S_OWN
    assert files == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md",
    }  # fmt: skip
    document = json.loads(out)
    assert set(document["files"]) == files
    assert document["bytes"] == sum(file.stat().st_size for file in Path("clean").iterdir())
    assert load("clean").fingerprint == load(base).fingerprint
    assert not list(Path().glob("clean.*"))


def test_export_of_an_adapter_is_a_peft_directory(adapted, maypole):
    assert maypole("export --model adapted --out clean")[0] == 0
    files = {file.name for file in Path("clean").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    one, other = load("clean"), load("adapted")
    assert torch.equal(logits(one.model, one.tokenizer), logits(other.model, other.tokenizer))


def test_export_changes_dtype_and_shards(base, maypole):
    assert maypole("export --model base --out small --dtype bfloat16 --max-shard-size 30KB")[0] == 0
    assert load("small").dtype == torch.bfloat16
    assert len(list(Path("small").glob("model-*.safetensors"))) > 1
    want = load(base).model.state_dict()
    got = load("small", dtype="float32").model.state_dict()
    assert all(torch.equal(got[name], want[name].bfloat16().float()) for name in want)


def test_export_replaces_a_directory_only_when_told(base, maypole):
    Path("there").mkdir()
    Path("there/precious.txt").write_text("mine")
    code, _, err = maypole("export --model base --out there")
    assert code == 2
    assert "there: is not empty\n  hint: name another --out, or replace it with --force" in err
    assert Path("there/precious.txt").read_text() == "mine"
    assert maypole("export --model base --out there --force")[0] == 0
    assert not Path("there/precious.txt").exists()
    assert load("there").fingerprint == load(base).fingerprint


def test_an_export_that_fails_leaves_nothing_at_its_place(base, maypole, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    Path("out").mkdir()
    monkeypatch.setattr("maypole.models.export.fsync_tree", full)
    code, _, err = maypole("export --model base --out out")
    assert code == 3
    assert "no space left to write" in err
    assert not list(Path("out").iterdir())
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert maypole("export --model base --out out")[0] == 0
    assert load("out").fingerprint == load(base).fingerprint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("info", "DIR: needs one directory\n  hint: maypole models info DIR"),
        ("info base --model base", "DIR: needs one directory"),
        ("info nowhere", "nowhere: no such directory\n  hint: a model or adapter directory"),
        ("info base/config.json", "base/config.json: is a file"),
        ("info empty", "empty: neither config.json nor adapter_config.json is there"),
        ("merge --model nowhere --out o", "nowhere: no such directory"),
        ("merge --model base --out o", "base: has no adapter to merge\n  hint: --adapter DIR"),
        ("merge --model base --adapter base --out o", "base: adapter_config.json is missing"),
        ("merge --model base --adapter base --out o --dry-run", "base: adapter_config.json is missing"),
        ("merge --model adapted", "--out"),
        ("merge --out o", "--model"),
        ("export --model base --out o --to ggml", "--to: 'ggml' does not work\n  hint: accepted: safetensors, gguf"),
        ("export --model base --out o --max-shard-size 5", "--max-shard-size: '5' does not work"),
        ("export --model base --out o --dtype int8", "--dtype: 'int8' does not work"),
        ("export --model base --adapter adapted --out o", "--adapter: exports one directory"),
        ("export --model nowhere --out o", "nowhere: no such directory"),
        ("export --model base --out base/config.json", "is a file"),
    ],
)
def test_wrong_input_exits_2_with_one_paragraph_and_writes_nothing(base, adapted, maypole, line, said):
    Path("empty").mkdir()
    code, out, err = maypole(line)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert not Path("o").exists()


@pytest.mark.parametrize("line", ["merge --model adapted", "export --model adapted", "export --model base"])
def test_dry_run_says_what_would_be_written_and_writes_nothing(base, adapted, maypole, line):
    code, out, _ = maypole(f"{line} --out o --dry-run --json")
    assert code == 0
    found = json.loads(out)
    weights = [base / "model.safetensors", *([adapted / "adapter_model.safetensors"] if "adapted" in line else [])]
    assert found["peak_memory_bytes"] == sum(file.stat().st_size for file in weights)
    assert found["files"]
    assert not list(Path().glob("o*"))


def test_configs_check_themselves():
    with pytest.raises(ConfigError, match="accepted: safetensors"):
        ExportOptions(model="m", out=Path("o"), to="ggml")
    with pytest.raises(ConfigError, match="a whole number and KB, MB or GB: 5GB"):
        MergeOptions(model="m", out=Path("o"), max_shard_size="-1GB")
