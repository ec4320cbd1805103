import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maypole.core.errors import UserError
from maypole.village import zoo
from maypole.village.examine import ROWS, answers, asked, examine
from maypole.village.instruct import BASE_NAMES
from maypole.village.measures import recall_questions, score, task_mean, task_questions
from maypole.village.names import VALUES
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


def test_an_examination_of_a_blank_model_scores_nothing():
    recipe = zoo.Recipe(
        name="blank", hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32, vocab_size=2048,
        learning_rate=1e-3, examples_per_step=8, tokens=1000,
    )  # fmt: skip
    lines = examine(zoo.blank(recipe, zoo.load_zoo("village-1M").tokenizer), 2)
    assert [line.measure for line in lines] == [measure for measure, _ in ROWS]
    assert max(line.score for line in lines if "facts" in line.measure) <= 0.5


def test_a_recipe_makes_a_checkpoint_that_loads_by_name_of_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    recipe = zoo.Recipe(
        name="tiny", hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32, vocab_size=1024,
        learning_rate=1e-3, examples_per_step=16, tokens=3000, phase1_tokens=1000,
    )  # fmt: skip
    first = zoo.make(recipe, tmp_path / "a")
    again = zoo.make(recipe, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert first.key == again.key
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="village-4M-prose"):
        zoo.load_zoo("village-9B")
