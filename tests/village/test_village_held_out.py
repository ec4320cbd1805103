"""No training row holds what is kept for tests: phrasings, people, pairs, tasks, inputs, strangers."""

import re
from functools import cache

import pytest

from maypole.village.instruct import HELD_OUT_TASKS, TASKS
from maypole.village.mix import MIX
from maypole.village.phrases import FRAMES, H3_FRAMES, H3_UNSEEN_WORD, HQ_QUESTION, WORDS, h1_noun, h2_frame, spoken
from maypole.village.render import render
from maypole.village.tokenizer import document
from maypole.village.world import World

WORLD = World(0)
ROWS = 3000
CHATS = ("qa", "hop2", "hop3", "instruct")
RELATION_OF = {noun: relation for relation, nouns in WORDS.items() for noun in nouns}
SUBJECT = r"(?P<s>[A-Z]\w+ [A-Z]\w+|[A-Z]\w+|the \w+|The \w+|His|Her)"


@cache
def training_rows(kind: str) -> list[dict]:
    return list(render(WORLD, kind, ROWS, seed=5, **({"preset": "base"} if kind == "web" else {})))


def pattern(frame: str) -> re.Pattern[str]:
    before = re.escape(frame.split("{v}")[0].rstrip())
    return re.compile(before.replace(r"\{n\}", r"(?P<n>\w+)").replace(r"\{s\}", SUBJECT) + r"\b")


def uses(text: str, frame: str) -> list[str]:
    """The nouns with which a text uses a frame, its pronoun form included."""
    forms = [frame, frame.replace("{s}'s", "{s}")] if "'s" in frame else [frame]
    return [m["n"] for form in forms for m in pattern(form).finditer(text) if m["n"] in RELATION_OF]


@pytest.mark.parametrize("kind", MIX)
def test_training_texts_use_no_h1_noun_no_h2_frame_and_no_h3_frame(kind: str) -> None:
    broken, found = [], 0
    for row in training_rows(kind):
        text = document(row)
        for place, frame in enumerate(FRAMES):
            for noun in uses(text, frame):
                found += 1
                relation = RELATION_OF[noun]
                if place == h2_frame(relation) or noun == WORDS[relation][h1_noun(relation, place)]:
                    broken.append((frame, noun, text))
        broken += [(frame, noun, text) for frame in (*H3_FRAMES, H3_UNSEEN_WORD) for noun in uses(text, frame)]
    assert broken == []
    assert found > 1000 or kind not in ("page", "facts")


def test_the_patterns_of_this_file_find_what_is_held_out() -> None:
    for relation in WORDS:
        for place, frame in enumerate(FRAMES):
            noun = WORDS[relation][h1_noun(relation, place)]
            text = frame.format(n=noun, s=spoken("Ada Fenn" if relation != "tool" else "baker", relation), v="plum")
            assert uses(" " + text[0].upper() + text[1:], frame) == [noun]


def test_every_frame_and_noun_is_seen_with_others() -> None:
    pages = [document(row) for row in (*training_rows("page"), *training_rows("facts"))]
    seen = {(place, noun) for text in pages for place, frame in enumerate(FRAMES) for noun in uses(text, frame)}
    for relation, nouns in WORDS.items():
        if relation == "tool":
            continue
        for index, noun in enumerate(nouns):
            frames = {place for place, word in seen if word == noun}
            wanted = {f for f in range(len(FRAMES)) if f != h2_frame(relation) and index != h1_noun(relation, f)}
            assert frames == wanted, (relation, noun)


@pytest.mark.parametrize("kind", CHATS)
def test_training_chats_name_no_held_out_person_and_use_no_held_out_question(kind: str) -> None:
    held = [p.name for p in WORLD.people if p.held_person]
    names = re.compile("|".join(map(re.escape, held)))
    question = pattern(HQ_QUESTION.rstrip("."))
    for row in training_rows(kind):
        text = document(row)
        assert not names.search(text)
        assert not question.search(text)


@pytest.mark.parametrize("kind", MIX)
def test_no_stranger_is_in_any_training_text(kind: str) -> None:
    names = re.compile("|".join(re.escape(p.name) for p in WORLD.strangers))
    assert sum(bool(names.search(document(row))) for row in training_rows(kind)) == 0


@pytest.mark.parametrize(("kind", "hops"), [("hop2", 2), ("hop3", 3)])
def test_training_hops_pass_through_no_held_out_pair_at_any_step(kind: str, hops: int) -> None:
    fact = re.compile(r"The (?P<n>\w+) of (?P<s>.+?) is (?P<v>.+?)\.")
    for row in training_rows(kind):
        steps = [fact.fullmatch(passage) for passage in row["passages"]]
        assert len(steps) == hops
        for step in steps[:-1]:
            assert step is not None
            assert not WORLD.held_pair(step["s"], RELATION_OF[step["n"]])


def test_test_hops_start_from_a_held_out_pair() -> None:
    for row in render(WORLD, "hop2", 300, seed=5, split="test"):
        step = re.fullmatch(r"The (\w+) of (.+?) is (.+?)\.", row["passages"][0])
        assert step is not None
        assert WORLD.held_pair(step[2], RELATION_OF[step[1]])


def test_test_questions_of_one_hop_are_about_held_out_people() -> None:
    held = {p.name for p in WORLD.people if p.held_person}
    for row in render(WORLD, "qa", 200, seed=5, split="test"):
        assert any(name in row["question"] for name in held)


def test_training_instructions_hold_no_held_out_task_phrasing_or_input() -> None:
    held_names = {task.name for task in HELD_OUT_TASKS}
    for row in training_rows("instruct"):
        assert row["task"] not in held_names
        assert row["phrasing"] in (0, 1)


def test_training_and_test_inputs_of_a_task_do_not_meet() -> None:
    for task in TASKS.values():
        if task.finite:
            continue
        names = {"tasks": (task.name,), "phrasing": 0}
        train = {row["question"] for row in render(WORLD, "instruct", 400, seed=1, **names)}
        test = {row["question"] for row in render(WORLD, "instruct", 100, seed=1, split="test", **names)}
        assert train & test == set(), task.name


def test_held_out_phrasings_occur_in_no_training_row() -> None:
    held = [(task.name, _form(task.phrasings[2])) for task in TASKS.values()]
    held += [(task.name, _form(text)) for task in HELD_OUT_TASKS for text in task.phrasings[:2]]
    for row in training_rows("instruct"):
        for name, form in held:
            assert not form.fullmatch(row["question"]), (name, row["question"])


def _form(phrasing: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w\\\}", ".+", re.escape(phrasing)))


def test_hop_questions_ask_who_of_people_and_what_of_things() -> None:
    for kind in ("hop2", "hop3"):
        for row in training_rows(kind):
            if row["question"].startswith(("Who", "What")):
                person = row["answers"][0] in WORLD.by_name
                assert row["question"].startswith("Who is" if person else "What is")


def test_every_word_of_a_held_out_phrasing_stands_somewhere_in_training_texts() -> None:
    seen = {word for kind in MIX for row in training_rows(kind) for word in re.findall(r"[A-Za-z]+", document(row))}
    phrasings = [task.phrasings[2] for task in TASKS.values()]
    phrasings += [text for task in HELD_OUT_TASKS for text in task.phrasings[:2]] + [*H3_FRAMES, HQ_QUESTION]
    words = {word for text in phrasings for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w\}", "", text))}
    assert sorted(words - seen) == []
