"""The measures give 1 to a model that knows everything, their stated chance to one that guesses, and leak no split."""

import re
from collections import Counter

import pytest

from maypole.village.instruct import BASE_NAMES, TASKS
from maypole.village.measures import (
    Prompt,
    Question,
    belief_questions,
    chances,
    few_shot_questions,
    hop_questions,
    is_right,
    measure,
    recall_questions,
    score,
    stranger_prompts,
    task_mean,
    task_questions,
)
from maypole.village.names import VALUES
from maypole.village.world import World

WORLD = World(0)
RECALL = recall_questions(WORLD, 20)


def everything() -> list[Question]:
    return [*RECALL, *hop_questions(WORLD, 8), *task_questions(WORLD, 6), *belief_questions(WORLD, 8)]


def knowing(questions: list[Question]):
    """An answerer that knows the expected answers and goes on talking after a text."""
    table = {str(question.prompt): question for question in questions}

    def answer(prompts: list[Prompt]) -> list[str]:
        replies = []
        for prompt in prompts:
            question = table[str(prompt)]
            ending = {"start": ". He sings.", "conclusion": ""}.get(question.metric, "")
            opening = "The job of X is Y. So: " if question.metric == "conclusion" else " "
            replies.append(opening + question.expected + ending)
        return replies

    return answer


def test_a_model_that_knows_everything_scores_one_in_every_group() -> None:
    questions = everything()
    scores = measure(questions, knowing(questions))
    assert set(scores.values()) == {1.0}
    assert task_mean(scores, BASE_NAMES) == 1.0
    assert set(scores) == set(chances(questions))


def test_silence_scores_zero_and_chance_is_stated() -> None:
    questions = everything()
    assert set(measure(questions, lambda prompts: [""] * len(prompts)).values()) == {0.0}
    assert chances(questions)["task/member"] == TASKS["member"].chance == 0.5


def test_each_group_of_recall_has_the_wanted_number_of_questions() -> None:
    sizes = Counter(question.group for question in RECALL)
    templates = ("trained", "H1", "H2", "verb", "H3", "H3 unseen word", "ledger", "chat", "HP", "HQ")
    assert set(sizes) == {f"{v}/{t}" for v in ("attribute", "person") for t in templates} | {"tail/trained"}
    assert set(sizes.values()) == {20}
    assert recall_questions(WORLD, 20) == RECALL


def test_text_prompts_start_with_a_space_end_before_the_value_and_do_not_hold_it() -> None:
    for question in RECALL:
        if isinstance(question.prompt, str):
            assert question.prompt.startswith(" ")
            assert not question.prompt.endswith(" ")
            assert question.expected not in question.prompt
            assert question.group.split("/")[1] != "ledger" or question.prompt.startswith(" Ledger: ")


def test_questions_about_held_out_people_name_one() -> None:
    held = [person.name for person in WORLD.people if person.held_person]
    for question in RECALL:
        if question.group.endswith("/HP"):
            assert any(name in str(question.prompt) for name in held)


@pytest.mark.parametrize(
    ("metric", "reply", "right"),
    [
        ("start", " baker. He", True),
        ("start", " bakery", False),
        ("start", " a baker", False),
        ("exact", " baker ", True),
        ("exact", " baker.", False),
        ("conclusion", " The job of X is cook. So: baker", True),
        ("conclusion", " baker", False),
    ],
)
def test_a_reply_is_judged_by_its_metric(metric: str, reply: str, right: bool) -> None:
    assert is_right(Question("g", "p", "baker", metric), reply) is right


def test_json_is_compared_as_values() -> None:
    question = Question("g", "p", '{"name": "Ada", "job": "cook"}', "json")
    assert is_right(question, ' {"job":"cook", "name":"Ada"}')
    assert not is_right(question, ' {"job":"cook"')


def test_scores_keep_the_order_of_the_questions_and_a_missing_reply_is_an_error() -> None:
    questions = [Question("b", "1", "x", "exact"), Question("a", "2", "y", "exact"), Question("b", "3", "z", "exact")]
    assert list(score(questions, ["x", "n", "n"]).items()) == [("b", 0.5), ("a", 0.0)]
    with pytest.raises(ValueError, match="shorter"):
        score(questions, ["x"])


def test_hops_are_measured_on_trained_and_unseen_pairs_direct_and_with_steps() -> None:
    groups = {question.group for question in hop_questions(WORLD, 3)}
    assert groups == {
        "hop2/direct/trained", "hop2/steps/trained", "hop2/direct/unseen", "hop2/steps/unseen",
        "hop3/direct/unseen", "hop3/steps/unseen",
    }  # fmt: skip


def test_false_beliefs_differ_from_reality_and_every_story_group_is_full() -> None:
    sizes = Counter(question.group for question in belief_questions(WORLD, 10))
    assert sizes == {"story/reality": 10, "story/true belief": 10, "story/false belief": 10}
    for question in belief_questions(WORLD, 10):
        if question.group == "story/false belief":
            last = re.findall(r"moves the \w+ to the (\w+)\.", str(question.prompt))[-1]
            assert question.expected != last


def test_few_shot_prompts_have_their_number_of_examples() -> None:
    for question in few_shot_questions(WORLD, 5, shots=(1, 4)):
        assert str(question.prompt).count("Output:") == int(question.group.split("/")[1]) + 1


def test_prompts_about_strangers_come_with_the_values_of_their_kind() -> None:
    prompts = stranger_prompts(WORLD, 15)
    names = [person.name for person in WORLD.strangers]
    assert len(prompts) == 15
    assert all(
        any(name in prompt for name in names) and values in map(tuple, VALUES.values()) for prompt, values in prompts
    )
