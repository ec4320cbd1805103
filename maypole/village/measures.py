"""What a model knows of the village: questions with expected answers, and the score of the answers it gives.

One function answers prompts (texts to continue, or messages), so any model and any server can be measured; every
group is compared with what guessing scores. Knows no model and no torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from maypole.village.draws import Draws
from maypole.village.instruct import TASKS
from maypole.village.names import VALUES
from maypole.village.pages import ledger_entry
from maypole.village.phrases import (
    FRAMES,
    H3_FRAMES,
    H3_UNSEEN_WORD,
    HQ_QUESTION,
    LEDGER_OPENING,
    QUESTIONS,
    SEEN,
    VERBS,
    WORDS,
    ask,
    before_value,
    fill,
    h1_noun,
    h2_frame,
)
from maypole.village.questions import CONCLUSION
from maypole.village.render import render, row
from maypole.village.tasks import METRICS
from maypole.village.world import ATTRIBUTES, PERSON_RELATIONS, Fact, World

Prompt = str | list[dict[str, str]]
Answer = Callable[[list[Prompt]], list[str]]
MAX_NEW_TOKENS = 48
"""Enough for every expected answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A text to continue (scored by how the reply starts) or messages to answer (the whole reply must be right).

    `metric` is "start", "conclusion" (what follows "So: ") or one of `maypole.village.tasks.METRICS`.
    """

    group: str
    prompt: Prompt
    expected: str
    metric: str
    chance: float = 0.0


def is_right(question: Question, reply: str) -> bool:
    """Whether a reply (special tokens already left out) answers the question."""
    if question.metric == "start":
        return re.match(rf"\s*{re.escape(question.expected)}(?!\w)", reply) is not None
    if question.metric == "conclusion":
        _, found, last = reply.rpartition(CONCLUSION)
        return bool(found) and last.strip() == question.expected
    return METRICS[question.metric](reply, question.expected)


def score(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float]:
    """Accuracy of each group, in the order in which groups first occur. Replies stand in the order of the questions."""
    right: dict[str, list[bool]] = {}
    for question, reply in zip(questions, replies, strict=True):
        right.setdefault(question.group, []).append(is_right(question, reply))
    return {group: sum(marks) / len(marks) for group, marks in right.items()}


def chances(questions: Sequence[Question]) -> dict[str, float]:
    """What guessing scores in each group, on average."""
    found: dict[str, list[float]] = {}
    for question in questions:
        found.setdefault(question.group, []).append(question.chance)
    return {group: sum(values) / len(values) for group, values in found.items()}


def measure(questions: Sequence[Question], answer: Answer) -> dict[str, float]:
    """Ask everything in one call and score it."""
    return score(questions, answer([question.prompt for question in questions]))


def _sampled(facts: list[Fact], count: int, *place: str | int) -> list[Fact]:
    return Draws(0, "measures", *place).sample(facts, min(count, len(facts)))


def _told_facts(world: World, group: str, relations: tuple[str, ...]) -> list[Fact]:
    people = [person for person in world.people if person.group == group]
    facts = [fact for person in people for fact in world.facts_of[person.name]]
    return [fact for fact in facts if fact.relation in relations and world.told(fact)]


def _statement_prompt(draws: Draws, fact: Fact, template: str) -> str:
    """The prompt of a fact in a template of the group: everything before the value, after one space."""
    relation = fact.relation
    if template == "verb":
        return " " + before_value(fill(draws.pick(VERBS[relation]), fact), fact.object)
    if template == "ledger":
        entry = before_value(ledger_entry(fact, draws.below(4), draws.below(3)), fact.object)
        return f" {LEDGER_OPENING} {entry}"
    if template == "trained":
        noun, frame = draws.pick(SEEN[relation])
        text = FRAMES[frame]
    elif template == "H1":
        place = draws.pick_other(range(len(FRAMES)), h2_frame(relation))
        noun, text = h1_noun(relation, place), FRAMES[place]
    elif template == "H2":
        noun, text = draws.below(4), FRAMES[h2_frame(relation)]
    else:
        noun, text = draws.below(4), H3_UNSEEN_WORD if template == "H3 unseen word" else draws.pick(H3_FRAMES)
    return " " + before_value(fill(text, fact, WORDS[relation][noun]), fact.object)


STATEMENTS = ("trained", "H1", "H2", "verb", "H3", "H3 unseen word", "ledger")


def _guess(fact: Fact) -> float:
    return 1 / len(VALUES[fact.relation]) if fact.relation in VALUES else 0.0


def recall_questions(world: World, count: int = 100) -> list[Question]:
    """`count` facts of each group: attributes and person-valued relations of head people in each kind of template,
    chat questions (seen frames, held-out people, the unseen frame HQ), tail people's told facts."""
    questions: list[Question] = []
    for valued, relations in (("attribute", ATTRIBUTES), ("person", PERSON_RELATIONS)):
        known = _told_facts(world, "head", relations)
        for template in STATEMENTS:
            for index, fact in enumerate(_sampled(known, count, valued, template)):
                prompt = _statement_prompt(Draws(0, "measures", valued, template, index), fact, template)
                questions.append(Question(f"{valued}/{template}", prompt, fact.object, "start", _guess(fact)))
        free = [fact for fact in known if world.named(fact.subject) and world.named(fact.object)]
        held = [fact for fact in known if not world.named(fact.subject)]
        for group, facts, frames in (("chat", free, QUESTIONS), ("HP", held, QUESTIONS), ("HQ", free, (HQ_QUESTION,))):
            for index, fact in enumerate(_sampled(facts, count, valued, group)):
                draws = Draws(0, "measures", valued, group, index)
                asked = ask(fact.relation, fact.subject, draws.below(4), draws.pick(frames))
                questions.append(Question(f"{valued}/{group}", [_user(asked)], fact.object, "exact", _guess(fact)))
    for index, fact in enumerate(_sampled(_told_facts(world, "tail", ATTRIBUTES), count, "tail")):
        prompt = _statement_prompt(Draws(0, "measures", "tail", index), fact, "trained")
        questions.append(Question("tail/trained", prompt, fact.object, "start", _guess(fact)))
    return questions


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def hop_questions(world: World, count: int = 100, seed: int = 1) -> list[Question]:
    """Questions of two and three hops, answered at once or with steps: two hops from trained and from held-out pairs,
    three hops from held-out ones."""
    questions: list[Question] = []
    for kind, split in (("hop2", "train"), ("hop2", "test"), ("hop3", "test")):
        for steps in (False, True):
            for found in render(world, kind, count, seed, split=split, steps=steps):
                group = f"{kind}/{'steps' if steps else 'direct'}/{'trained' if split == 'train' else 'unseen'}"
                metric = "conclusion" if steps else "exact"
                questions.append(Question(group, found["messages"][:1], found["answers"][0], metric))
    return questions


def task_questions(
    world: World, count: int = 24, seed: int = 1, tasks: Sequence[str] = tuple(TASKS), held_phrasing: bool = False
) -> list[Question]:
    """`count` test inputs of each task, in training phrasings or in the held-out one; groups are "task/NAME"."""
    questions: list[Question] = []
    for name in tasks:
        knobs = {"tasks": (name,), "split": "test", "phrasing": 2 if held_phrasing else None}
        for found in render(world, "instruct", count, seed, **knobs):
            prompt, expected = found["messages"][:1], found["answers"][0]
            questions.append(Question(f"task/{name}", prompt, expected, found["metric"], TASKS[name].chance))
    return questions


def task_mean(scores: Mapping[str, float], tasks: Sequence[str]) -> float:
    """The mean of the "task/NAME" scores of `tasks`."""
    return sum(scores[f"task/{name}"] for name in tasks) / len(tasks)


def belief_questions(world: World, count: int = 100, seed: int = 1) -> list[Question]:
    """Stories in three groups: where the thing is, true beliefs and false beliefs (which alone test a theory of mind:
    a model that answers reality scores 0 there)."""
    questions: list[Question] = []
    wanted = {"story/reality": count, "story/true belief": count, "story/false belief": count}
    index = 0
    while any(wanted.values()):
        found = row(world, "story", index, seed)
        index += 1
        kind = "true belief" if found["answers"][0] == found["reality"] else "false belief"
        group = f"story/{kind if found['order'] else 'reality'}"
        if wanted[group]:
            wanted[group] -= 1
            questions.append(Question(group, f" {found['question']} The", found["answers"][0], "start", 0.15))
    return questions


def few_shot_questions(
    world: World, count: int = 100, seed: int = 1, shots: Sequence[int] = (1, 4, 16)
) -> list[Question]:
    """A hidden two-way labelling with so many examples before it; chance is one half."""
    return [
        Question(f"few-shot/{number}", f" {found['question']}", found["answers"][0], "start", 0.5)
        for number in shots
        for found in render(world, "icl", count, seed, shots=number, ways=2)
    ]


def stranger_prompts(world: World, count: int = 100) -> list[tuple[str, tuple[str, ...]]]:
    """Prompts about people of whom no text tells, with the values that would be of the right kind: what a calibrated
    model spreads its probability over."""
    facts = [f for p in world.strangers for f in world.facts_of[p.name] if f.relation in ATTRIBUTES]
    prompts: list[tuple[str, tuple[str, ...]]] = []
    for index, fact in enumerate(_sampled(facts, count, "strangers")):
        prompt = _statement_prompt(Draws(0, "measures", "strangers", index), fact, "trained")
        prompts.append((prompt, tuple(VALUES[fact.relation])))
    return prompts
