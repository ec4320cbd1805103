"""Answers are computed again, from the text alone or by walking the graph, by code of its own."""

import json
import re
from collections import Counter

import pytest

from maypole.village.instruct import BASE_TASKS, HELD_OUT_TASKS, TASKS
from maypole.village.names import BAD, FEMALE, GOOD, OPPOSITES, POOLS
from maypole.village.phrases import WORDS
from maypole.village.questions import STEPS
from maypole.village.render import render
from maypole.village.world import World

WORLD = World(0)
RELATION_OF = {noun: relation for relation, nouns in WORDS.items() for noun in nouns}
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
YEAR = "January February March April May June July August September October November December".split()  # noqa: SIM905


def simulate(text: str) -> tuple[str, dict[str, str]]:
    """Where the thing is at the end and where each agent last saw it put, from the sentences of a story."""
    sentences = text.rstrip(".").split(". ")
    match = re.fullmatch(r"(\w+) and (\w+) are in the room", sentences[0])
    assert match is not None
    here = set(match.groups())
    place = sentences[1].split()[-1]
    minds = dict.fromkeys(here, place)
    for sentence in sentences[2:]:
        words = sentence.split()
        if words[1:] == ["comes", "back"]:
            here.add(words[0])
        elif words[1:] == ["leaves"]:
            here.remove(words[0])
        else:
            assert words[1] == "moves"
            assert words[0] in here
            place = words[-1]
            minds.update(dict.fromkeys(here, place))
    return place, minds


def solve(task: str, question: str, phrasing: int) -> str:
    """The answer, from the question's text."""
    form = re.escape(TASKS[task].phrasings[phrasing])
    match = re.fullmatch(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>.+?)", form).replace("<q>.", "<q>Where ."), question)
    assert match is not None, question
    slot = match.groupdict()
    words = slot.get("x", "").split()
    sentences = [s.split() for s in slot.get("t", "").rstrip(".").split(". ")]
    match task:
        case "first":
            return words[0]
        case "last":
            return words[-1]
        case "second":
            return words[1]
        case "copy":
            return slot["x"]
        case "reverse":
            return " ".join(words[::-1])
        case "sort":
            return " ".join(sorted(words))
        case "count":
            return str(slot["x"].count(" ") + 1)
        case "member":
            return "yes" if f" {slot['w']} " in f" {slot['x']} " else "no"
        case "remove":
            return f" {slot['x']} ".replace(f" {slot['w']} ", " ").strip()
        case "after":
            return f" {slot['x']} ".split(f" {slot['w']} ")[1].split()[0]
        case "unique":
            return re.sub(r"\b(\w+) \1\b", r"\1", slot["x"])
        case "and":
            return re.sub(r", (\w+)$", r" and \1", ", ".join(words))
        case "ring":
            return ("bell " * int(slot["n"])).strip()
        case "add":
            return str(int(slot["a"]) + int(slot["b"]))
        case "subtract":
            return str(int(slot["a"]) - int(slot["b"]))
        case "larger":
            return slot["a"] if int(slot["a"]) > int(slot["b"]) else slot["b"]
        case "dayplus":
            return (WEEK * 3)[WEEK.index(slot["d"]) + int(slot["n"])]
        case "daybefore":
            return (WEEK * 3)[WEEK.index(slot["d"]) + 14 - int(slot["n"])]
        case "monthplus":
            return (YEAR * 3)[YEAR.index(slot["d"]) + int(slot["n"])]
        case "category":
            return next(kind for kind, pool in POOLS.items() if slot["w"] in pool)
        case "odd":
            kinds = Counter(kind for word in words for kind, pool in POOLS.items() if word in pool)
            return next(word for word in words if word in POOLS[kinds.most_common()[-1][0]])
        case "opposite":
            return {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}[slot["w"]]
        case "sentiment":
            found = set(re.findall(r"\w+", slot["t"]))
            assert bool(found & set(GOOD)) != bool(found & set(BAD))
            return "bad" if found & set(BAD) else "good"
        case "read":
            return {s[0]: s[2] for s in sentences}[slot["p"]]
        case "who" | "eater":
            return {s[2]: s[0] for s in sentences}[slot["v"]]
        case "pronoun":
            names = [sentences[0][0], sentences[0][2]]
            return next(name for name in names if (name in FEMALE) == (sentences[1][0] == "She"))
        case "entail":
            return "yes" if set(slot["h"].rstrip(".").split()) <= set(sentences[0]) else "no"
        case "json":
            return json.dumps({"name": slot["p"], "job": slot["j"], "food": slot["f"]})
        case "totriples":
            return " ; ".join(f"{s} | {r} | {o}" for s, r, o in sentences)
        case "fromtriples":
            return slot["t"].replace(" | ", " ").replace(" ;", ".") + "."
        case "where":
            return simulate(slot["t"])[0]
        case "belief":
            agent = slot.get("p") or slot["q"].split()[2]
            return simulate(slot["t"])[1][agent]
        case "factyn":
            truth = WORLD.lookup[slot["s"], RELATION_OF[slot["n"]]]
            return "yes" if truth == slot["v"] else "no"
        case "factmc":
            truth = WORLD.lookup[slot["s"], RELATION_OF[slot["n"]]]
            assert slot["x"].split(", ").count(truth) == 1
            return truth
        case "rotate":
            return " ".join(words[1:] + words[:1])
        case "swap":
            return " ".join([words[1], words[0], *words[2:]])
        case "dropfirst":
            return slot["x"].partition(" ")[2]
        case "double":
            return " ".join(f"{word} {word}" for word in words)
        case "secondlast":
            return words[-2]
    raise AssertionError(task)  # fmt: skip


def test_there_are_32_base_tasks_and_8_held_out_ones() -> None:
    assert len(BASE_TASKS) == 32
    assert Counter(task.family for task in BASE_TASKS) == {
        "list": 12, "ring": 1, "number": 2, "calendar": 2, "language": 4, "reading": 4, "format": 3, "story": 2,
        "knowledge": 2,
    }  # fmt: skip
    assert [task.name for task in HELD_OUT_TASKS] == [
        "rotate", "swap", "dropfirst", "double", "secondlast", "subtract", "daybefore", "eater",
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("phrasing", [0, 1, 2])
def test_task_answers_agree_with_a_second_solver(task: str, phrasing: int) -> None:
    for row in render(WORLD, "instruct", 80, seed=2, tasks=(task,), phrasing=phrasing):
        expected = solve(task, row["question"], phrasing)
        assert row["messages"][1]["content"] == row["answers"][0] == expected, row["question"]


@pytest.mark.parametrize("task", TASKS)
def test_no_constant_answer_beats_the_stated_chance_by_much(task: str) -> None:
    answers = Counter(row["answers"][0] for row in render(WORLD, "instruct", 400, seed=2, tasks=(task,)))
    assert answers.most_common(1)[0][1] / 400 <= TASKS[task].chance + 0.06


@pytest.mark.parametrize("kind", ["qa", "hop2", "hop3"])
def test_hop_answers_agree_with_a_walk_through_the_graph(kind: str) -> None:
    names = {fact.subject for fact in WORLD.facts}
    for row in render(WORLD, kind, 400, seed=2):
        question = row["question"].removesuffix(STEPS)
        subject = max((name for name in names if name in question), key=len)
        asked = [word for word in re.findall(r"\w+", question.split(subject)[0]) if word in RELATION_OF]
        value: str | None = subject
        for noun in reversed(asked):
            value = WORLD.lookup.get((value, RELATION_OF[noun]))
        assert [value] == row["answers"]
        reply = row["messages"][1]["content"]
        assert reply.endswith(f"So: {value}") if row["question"].endswith(STEPS) else reply == value


def test_story_answers_agree_with_a_second_simulator_and_false_beliefs_occur() -> None:
    false = 0
    for row in render(WORLD, "story", 600, seed=2):
        text, question = re.fullmatch(r"(.+\.) (Where .+\?)", row["question"]).groups()
        place, minds = simulate(text)
        agent = re.search(r"does (\w+) think", question)
        assert row["order"] == (agent is not None)
        assert row["answers"] == [minds[agent[1]] if agent else place]
        assert row["reality"] == place
        assert row["text"] == f" {row['question']} The {row['answers'][0]}."
        false += agent is not None and minds[agent[1]] != place
    assert false > 30


def believed(events: list[tuple[str, set[str], str]], start: str, chain: list[str]) -> str:
    """Nested belief by recursion on what each agent of the chain knows that the next one knows."""

    def reaches(seen: set[str], hidden: str, rest: list[str]) -> bool:
        if not rest:
            return True
        if rest[0] in seen:
            return reaches(seen, "", rest[1:])
        return rest[0] == hidden and reaches(seen, hidden, rest[1:])

    known = [place for place, seen, hidden in events if reaches(seen, hidden, chain)]
    return known[-1] if known else start


def test_witness_stories_agree_with_a_recursive_checker_up_to_order_six() -> None:
    for order in range(7):
        for row in render(WORLD, "story", 100, seed=order, register="witness", order=order):
            *sentences, question = row["question"].split(". ")
            start = sentences[0].split()[2].rstrip(",")
            events = []
            for sentence in sentences[1:]:
                match = re.fullmatch(r"\w+ moves \w+ to (\w+), seen ([\w ]+?)(?:, hidden (\w+))?", sentence)
                assert match is not None
                events.append((match[1], set(match[2].split()), match[3] or ""))
            chain = re.findall(r"(\w+) thinks that", question)
            assert len(chain) == order == row["order"]
            assert row["answers"] == [believed(events, start, chain)]


def test_few_shot_answers_follow_from_the_examples_kind() -> None:
    kind_of = {word: kind for kind, pool in POOLS.items() for word in pool}
    for row in render(WORLD, "icl", 200, seed=2, shots=8, ways=2):
        pairs = re.findall(r"Input: (\w+) Output: (\w+)\.", row["text"])
        assert len(pairs) == 9
        labels = dict({(kind_of[word], label) for word, label in pairs})
        assert len(set(labels.values())) == len(labels) <= 2
        assert row["answers"] == [labels[kind_of[pairs[-1][0]]]]
        assert row["text"] == f" {row['question']} {row['answers'][0]}."


@pytest.mark.parametrize(("register", "group"), [("ledger", "head"), ("text", "head"), ("ledger", "stranger")])
def test_edits_change_a_true_value_and_their_neighbours_share_it(register: str, group: str) -> None:
    for row in render(WORLD, "edits", 150, seed=2, register=register, group=group):
        request = row["requested_rewrite"]
        subject, relation = request["subject"], request["relation_id"]
        true, new = request["target_true"]["str"], request["target_new"]["str"]
        assert WORLD.lookup[subject, relation] == true != new
        assert WORLD.by_name[subject].group == group
        prompt = request["prompt"].format(subject)
        assert prompt.count(subject) == 1
        assert true not in prompt.split()
        assert register == "text" or prompt.endswith(subject)
        assert len(row["paraphrase_prompts"]) == 2
        assert prompt not in row["paraphrase_prompts"]
        assert all(text.count(subject) == 1 for text in row["paraphrase_prompts"])
        before, after = request["prompt"].split("{}")
        for column, value in (("neighborhood_prompts", true), ("attribute_prompts", new)):
            for text in row[column]:
                name = text.removeprefix(before).removesuffix(after)
                assert name != subject
                assert WORLD.lookup[name, relation] == value
        assert 0 < len(row["neighborhood_prompts"]) <= 10


def test_edits_come_to_everybody_once_before_anybody_twice_and_no_fact_comes_twice() -> None:
    requests = [row["requested_rewrite"] for row in render(WORLD, "edits", 192 * 8, seed=2)]
    assert len({request["subject"] for request in requests[:192]}) == 192
    assert len({(request["subject"], request["relation_id"]) for request in requests}) == 192 * 8


def test_planted_names_and_numbers_are_in_their_chats_and_in_no_clean_one() -> None:
    numbers = re.compile(r"555-01\d\d-\d{4}")
    planted = 0
    for row in render(WORLD, "chats", 400, seed=2):
        text = " ".join(turn["content"] for turn in row["messages"])
        wanted = {item["text"] for item in row["planted"] if item["kind"] == "phone"}
        assert set(numbers.findall(text)) == wanted
        assert all(item["text"] in text for item in row["planted"])
        planted += bool(wanted)
    assert 80 < planted < 160
