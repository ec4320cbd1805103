"""Judges of descriptions are probabilities; one is transitive, one likes length, one goes round in a circle."""

from itertools import permutations, product

import pytest

from maypole.core.errors import ConfigError
from maypole.village.describe import clauses, completion, describe_prompt, gold_reward, oracle, style
from maypole.village.draws import Draws
from maypole.village.phrases import WORDS
from maypole.village.render import render
from maypole.village.world import ATTRIBUTES, World

WORLD = World(0)
NAME = WORLD.head[0].name
PROMPT = describe_prompt(NAME)
ANSWERS = list(dict.fromkeys(completion(WORLD, Draws(0, "answers", i), NAME) for i in range(12)))


def clause(relation: str, right: bool = True) -> str:
    truth = WORLD.lookup[NAME, relation]
    return f"{WORDS[relation][0]} {truth if right else 'nothing'}"


@pytest.mark.parametrize(
    ("parts", "reward"),
    [
        (["job"], 1.0),
        (["job", "home", "food"], 3.0),
        (["job", "job"], 0.0),
        (["job", "-pet"], 0.0),
        (["-job", "-job"], -2.0),
    ],
)
def test_gold_reward_is_right_minus_wrong_minus_repeated(parts: list[str], reward: float) -> None:
    text = " " + ", ".join(clause(part.lstrip("-"), not part.startswith("-")) for part in parts) + "."
    assert gold_reward(WORLD, NAME, text) == reward


def test_malformed_answers_are_wrong_and_never_an_error() -> None:
    assert gold_reward(WORLD, NAME, "") == -1.0
    assert gold_reward(WORLD, NAME, " zzz, job") == -2.0
    assert style("") == 0


@pytest.mark.parametrize("judge", ["bradley-terry", "length-biased", "intransitive"])
def test_both_orders_of_a_pair_sum_to_one(judge: str) -> None:
    preference = oracle(WORLD, judge)
    for a, b in product(ANSWERS, ANSWERS):
        assert preference.probability(PROMPT, a, b) + preference.probability(PROMPT, b, a) == pytest.approx(1.0)
    assert preference(prompts=[PROMPT], a=[ANSWERS[0]], b=[ANSWERS[0]], extra=[1]) == [0.5]


def test_bradley_terry_is_transitive() -> None:
    p = oracle(WORLD).probability
    for a, b, c in permutations(ANSWERS, 3):
        if p(PROMPT, a, b) >= 0.5 and p(PROMPT, b, c) >= 0.5:
            assert p(PROMPT, a, c) >= 0.5


def test_the_length_biased_judge_prefers_the_longer_of_equal_rewards() -> None:
    short, long = f" {clause('job')}.", f" {clause('job')}, {clause('home')}, {clause('pet', right=False)}."
    assert oracle(WORLD).probability(PROMPT, long, short) == 0.5
    assert oracle(WORLD, "length-biased").probability(PROMPT, long, short) > 0.6


def test_the_intransitive_judge_has_a_circle_of_three() -> None:
    p = oracle(WORLD, "intransitive").probability
    texts = [f" {clause(relation)}." for relation in ATTRIBUTES[:3]]
    assert [style(text) for text in texts] == [0, 1, 2]
    around = [p(PROMPT, texts[i], texts[(i + 1) % 3]) for i in range(3)]
    assert all(value > 0.9 for value in around)


def test_an_unknown_judge_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="accepted: bradley-terry, length-biased, intransitive"):
        oracle(WORLD, "fair")


def test_sixty_percent_of_the_clauses_are_right() -> None:
    right = total = 0
    for row in render(WORLD, "describe", 1500, seed=4):
        name = row["prompt"].removeprefix(" Describe ").rstrip(":")
        for relation, value in clauses(row["completion"]):
            total += 1
            right += WORLD.lookup[name, relation] == value
    assert right / total == pytest.approx(0.6, abs=0.03)


def test_chosen_wins_as_often_as_the_judge_says() -> None:
    rows = list(render(WORLD, "describe", 3000, seed=4, form="pairs"))
    assert all(row["chosen"] != row["rejected"] for row in rows)
    better = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    worse = sum(row["chosen_score"] < row["rejected_score"] for row in rows)
    assert better > 3 * worse
    # Given a label drawn with probability p, the stated p of the chosen side averages E[p^2 + (1-p)^2].
    stated = [row["probability"] for row in rows]
    expected = sum(p * p + (1 - p) * (1 - p) for p in stated) / 3000
    assert sum(stated) / 3000 == pytest.approx(expected, abs=0.02)
