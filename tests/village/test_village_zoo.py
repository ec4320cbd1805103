import json
import os
import re
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.lock import DirectoryLock
from maypole.models.block_views import blocks
from maypole.village import zoo
from maypole.village.blank import Init, blank
from maypole.village.examine import ROWS, answers, asked, examine, figures
from maypole.village.figures import Figures
from maypole.village.instruct import BASE_NAMES
from maypole.village.measures import recall_questions, score, task_mean, task_questions
from maypole.village.names import VALUES
from maypole.village.pretraining import dataset
from maypole.village.recipes import RECIPES, Recipe, VillageMix, content
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import World

SHIPPED = sorted(path.name for path in zoo.SHIPPED.iterdir())


def right(lm, questions):
    return score(questions, answers(lm, [q.prompt for q in questions]))


@pytest.fixture(scope="module")
def base():
    return zoo.load_zoo("village-4M-prose")


@pytest.fixture(scope="module")
def small():
    return zoo.load_zoo("village-1M")


def test_the_base_recalls_facts_in_wordings_it_never_saw(base):
    found = right(base, [q for q in recall_questions(World(0), 20) if q.group.endswith(("/trained", "/H1", "/H2"))])
    assert min(found[f"{kind}/{way}"] for kind in ("attribute", "person") for way in ("H1", "H2")) >= 0.95


def test_the_base_does_most_of_its_tasks_and_none_that_it_never_saw(base):
    found = right(base, task_questions(World(0), 4))
    assert task_mean(found, BASE_NAMES) >= 0.55  # 0.6 of many; 128 questions are known to within 0.09
    assert found["task/rotate"] == 0 == found["task/double"]


def test_the_small_one_has_full_recall_too(small):
    groups = ("attribute/H1", "attribute/H2")
    found = right(small, [q for q in recall_questions(World(0), 25) if q.group in groups])
    assert min(found.values()) >= 0.95


@pytest.mark.parametrize("name", SHIPPED)
def test_every_word_of_the_world_is_one_token_and_chats_have_the_template(name):
    tokenizer = AutoTokenizer.from_pretrained(zoo.SHIPPED / name)
    world = World(0)
    words = {w for p in world.people for w in p.name.split()} | {v for vs in VALUES.values() for v in vs}
    assert [w for w in sorted(words) if len(tokenizer.encode(f" {w}", add_special_tokens=False)) != 1] == []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False)
    assert shown == "<|bos|><|user|> a<|end|><|assistant|> b<|end|>"
    assert shown.startswith(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", SHIPPED)
def test_transformers_alone_computes_the_same(name):
    alone = AutoModelForCausalLM.from_pretrained(zoo.SHIPPED / name, dtype=torch.float32)
    ours = zoo.load_zoo(name, dtype="float32")
    ids = torch.tensor([ours.tokenizer.encode(" Ada Fenn works as a baker.")])
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, ours.model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_says_what_it_cannot_do_with_chance_beside_it(name):
    card = (zoo.SHIPPED / name / "README.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (\d\.\d\d \| \d\.\d\d) \|$", card, re.MULTILINE))
    assert list(rows) == [measure for measure, _ in ROWS]
    assert {"stories: first-order false belief", 'looking a fact up in the prompt: "read"'} < set(rows)
    assert name in card
    assert "permissive" in card or "docstrings" not in card


def test_the_lines_of_the_card_cover_questions_that_are_asked():
    groups = {q.group for q in asked(2)}
    assert {g for _, wanted in ROWS for g in wanted} <= groups


TINY = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 512,
}  # fmt: skip


def recipe(name="tiny", **changed):
    material = VillageMix(tokens=3000, phase1_tokens=1000, vocab_size=1024)
    fields = {"model": TINY, "material": material, "learning_rate": 1e-3, "examples_per_step": 16}
    return Recipe(name=name, **fields | changed)


def test_an_examination_of_a_blank_model_scores_nothing():
    lines = examine(blank(TINY, Init(), zoo.load_zoo("village-1M").tokenizer, 0, "blank"), 2)
    assert [line.measure for line in lines] == [measure for measure, _ in ROWS]
    assert max(line.score for line in lines if "facts" in line.measure) <= 0.5


def test_a_recipe_makes_a_checkpoint_that_loads_by_name_of_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "EXAMINED", 1)
    first = zoo.make(recipe(), tmp_path / "a")
    again = zoo.make(recipe(), tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert first.key == again.key
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "8 tasks never seen" in (tmp_path / "a" / "README.md").read_text()


def test_the_card_of_a_reader_says_how_far_it_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "EXAMINED", 1)
    reader = recipe(material=VillageMix(tokens=1000, phase1_tokens=500, vocab_size=1024, lookup_tokens=500))
    zoo.make(reader, tmp_path / "reader")
    card = (tmp_path / "reader" / "README.md").read_text()
    assert "0.0M tokens of passages with questions first" in card
    assert "Passages are read only in the short sentences" in card
    assert "it cannot" not in card


@dataclass(frozen=True)
class Letters:
    """A material of another world: "a b" again and again."""

    count: int

    def tokenizer(self):
        return zoo.load_zoo("village-1M").tokenizer

    def documents(self, tokenizer, seed):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(" a b" * 10, add_special_tokens=False)]
        for _ in range(self.count):
            yield {"kind": "letters", "ids": ids, "weights": [0.0] + [1.0] * (len(ids) - 1)}


@pytest.fixture
def letters(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path))
    return recipe("letters", material=Letters(64), init=Init(embeddings=0.5))


def test_a_recipe_is_made_at_its_first_use_and_then_at_hand(letters, capsys, monkeypatch):
    lm = zoo.load_zoo(letters, dtype="float32")
    assert "letters does not come with the package: it is trained once now" in capsys.readouterr().err
    monkeypatch.setattr(zoo, "make", None)
    again = zoo.load_zoo(letters, dtype="float32")
    assert lm.fingerprint == again.fingerprint
    assert capsys.readouterr().err == ""


def test_what_decides_a_checkpoint_decides_where_it_lies(letters):
    others = [letters, replace(letters, seed=1), replace(letters, init=Init()), replace(letters, material=Letters(65))]
    assert len({content(other) for other in others}) == 4
    assert content(replace(letters, material=Letters(64))) == content(letters)


def test_material_whose_code_is_in_no_file_is_an_error(letters):
    typed = type("Typed", (Letters,), {"__module__": "nowhere"})
    with pytest.raises(UserError, match="letters: the code of its material, Typed, is in no file"):
        content(replace(letters, material=typed(64)))


def test_a_stopped_training_goes_on_and_ends_with_the_same_weights(letters, tmp_path, monkeypatch):
    whole = zoo.make(letters, tmp_path / "whole")
    save = zoo.save_result
    monkeypatch.setattr(zoo, "save_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        zoo.place(letters)
    monkeypatch.setattr(zoo, "save_result", save)
    weights = [(made / "model.safetensors").read_bytes() for made in (whole.path, zoo.place(letters))]
    assert weights[0] == weights[1]
    assert Artifact.load(zoo.place(letters)).key == whole.key


def test_a_second_process_waits_for_the_one_that_trains(letters, tmp_path, monkeypatch):
    folder = tmp_path / "zoo" / f"letters-{content(letters)[:12]}"
    lock, told, said, found = DirectoryLock.take(folder), threading.Event(), [], []
    monkeypatch.setattr(zoo, "say", lambda text: (said.append(text), told.set()))
    second = threading.Thread(target=lambda: found.append(zoo.place(letters)))
    second.start()
    assert told.wait(60)
    (folder / "letters").mkdir()  # the first one is done
    lock.release()
    second.join(60)
    assert found == [folder / "letters"]
    assert said == [f"letters is being trained by process {os.getpid()}: waiting until it is done"]


@pytest.mark.parametrize("name", [name for name, made in RECIPES.items() if not made.init.induction])
def test_every_recipe_starts_at_the_scales_that_learn(name):
    made = RECIPES[name]
    lm = blank(made.model, made.init, zoo.load_zoo("village-1M").tokenizer, 0, name)
    view, width = blocks(lm.model), made.model["hidden_size"]
    assert view.embeddings.weight.std().item() == pytest.approx(made.init.embeddings * width**-0.5, rel=0.02)
    for block in view:
        assert block.k.weight.std().item() == pytest.approx(0.6 * width**-0.5, rel=0.05)
        assert block.down.weight.std().item() == pytest.approx(
            0.6 * (block.down.weight.shape[1] * 2 * len(view)) ** -0.5, rel=0.05
        )


def test_rows_are_what_they_say():
    documents = [{"kind": "x", "ids": [1, 2, 3], "weights": [0.0, 1.0, 1.0]}] * 2
    made = dataset(iter(documents))
    assert made[1] == {"ids": [1, 2, 3], "weights": [0.0, 1.0, 1.0]}
    same, shifted = dataset(iter(documents)), dataset(iter([{**documents[0], "ids": [1, 2, 4]}] * 2))
    assert made._fingerprint == same._fingerprint != shifted._fingerprint


def test_figures_are_stored_and_shown_side_by_side(tmp_path, capsys):
    name, manifest = "village-1M", {"metrics": {"tokens": 3_300_000, "steps": 10}, "cpu_seconds": 350.4}
    measured = figures(zoo.load_zoo(name), name, manifest, 2)
    replace(measured, name="village-0.3M", parameters=344_640).write(tmp_path)
    zoo.store(name, count=2, out=tmp_path)
    stored = Figures.read(tmp_path / "village-1M.json")
    assert stored == replace(measured, tokens=None, steps=None, cpu_seconds=None)
    shown = capsys.readouterr().out
    assert "| checkpoint | 0.3M | 1M |" in shown
    assert "| seconds of one core | 350 |  |" in shown
    assert f"| wiki | {stored.perplexity['wiki']:.1f} | {stored.perplexity['wiki']:.1f} |" in shown
    assert f"| facts, trained wording | {stored.chance['facts, trained wording']:.2f} | 1.00 | 1.00 |" in shown
    assert "| who | 0.34 |" in shown


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"village-0\.3M, village-1M, village-4M"):
        zoo.load_zoo("village-9B")


def test_a_text_ends_with_eos_and_a_turn_with_its_mark_where_the_tokenizer_has_one():
    tokenizer = zoo.load_zoo("village-1M").tokenizer
    ends = blank(TINY, Init(), tokenizer, 0, "x").model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|eos|>", "<|end|>"]
    plain = word_tokenizer(["a b"])
    assert blank(TINY, Init(), plain, 0, "x").model.generation_config.eos_token_id == [plain.eos_token_id]
