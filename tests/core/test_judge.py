import asyncio
import math

import numpy as np
import pytest

from maypole.core.errors import JudgeError, MissingExtra
from maypole.core.judge import as_preference, as_reward, call_preference, call_reward, matrix, symmetric


def length(prompts, completions, **columns):
    return [len(c) for c in completions]


def test_reward_is_called_by_keyword_with_its_columns():
    seen = {}

    def reward(*, prompts, completions, completion_ids, answer):
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, answer=answer)
        return np.array([1, 0.5])

    columns = {"completion_ids": [[1], [2]], "answer": ("a", "b")}
    found = call_reward(reward, ("p", "q"), ["x", "y"], columns)
    assert found.scores == [1.0, 0.5]
    assert seen["prompts"] == ["p", "q"]
    assert seen["completion_ids"] == [[1], [2]]
    assert seen["answer"] == ["a", "b"]


def test_async_judges_are_awaited_in_one_loop_even_inside_a_running_loop():
    loops = []

    async def reward(prompts, completions, **columns):
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return [1.0] * len(prompts)

    async def outer():
        return call_reward(reward, ["p"], ["c"]).scores

    assert call_reward(reward, ["p", "q"], ["c", "d"]).scores == [1.0, 1.0]
    assert asyncio.run(outer()) == [1.0]
    assert loops[0] is loops[1]


def test_none_is_no_opinion_and_counted():
    found = call_reward(lambda **_: [None, 2.0, None], list("abc"), list("xyz"))
    assert (found.scores, found.no_opinion, found.failed) == ([None, 2.0, None], 2, 0)
    assert np.isnan(found.array).tolist() == [True, False, True]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.7", [1.0]])
def test_a_wrong_number_stops_with_its_row(wrong):
    with pytest.raises(JudgeError, match="row 2: the judge answered"):
        call_reward(lambda **_: [1.0, wrong], ["p", "q"], ["c", "d"])


def test_a_probability_outside_the_unit_interval_is_an_error():
    with pytest.raises(JudgeError, match=r"row 1: the judge answered '1.2'.*\n.*\[0, 1\]"):
        call_preference(lambda **_: [1.2], ["p"], ["x"], ["y"])


def fails_on_bad(prompts, completions, **columns):
    if "bad" in completions:
        raise TimeoutError("no answer in 5 s")
    return [1.0] * len(prompts)


def test_a_raising_judge_stops_with_the_row_that_made_it_raise():
    with pytest.raises(JudgeError, match="row 12: the judge raised TimeoutError: no answer in 5 s") as caught:
        call_reward(fails_on_bad, ["p"] * 3, ["a", "bad", "c"], rows=[11, 12, 13])
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_skip_row_keeps_the_other_rows_and_counts_the_failed_one():
    found = call_reward(fails_on_bad, ["p"] * 3, ["a", "bad", "c"], on_judge_error="skip-row")
    assert (found.scores, found.no_opinion, found.failed) == ([1.0, None, 1.0], 0, 1)


def test_a_single_failing_row_is_asked_once():
    calls = []

    def reward(prompts, completions, **columns):
        calls.append(1)
        raise RuntimeError("down")

    assert call_reward(reward, ["p"], ["c"], on_judge_error="skip-row").failed == 1
    assert len(calls) == 1


def test_a_wrong_count_is_never_padded():
    with pytest.raises(JudgeError, match="rows 1 to 3: the judge returned 1 answers"):
        call_reward(lambda **_: [0.5], ["p"] * 3, ["c"] * 3)
    found = call_reward(lambda **_: [], ["p"] * 3, ["c"] * 3, on_judge_error="skip-row")
    assert (found.scores, found.failed) == ([None] * 3, 3)


def test_a_missing_extra_is_not_a_failed_row():
    def reward(**_):
        raise MissingExtra("align")

    with pytest.raises(MissingExtra):
        call_reward(reward, ["p"], ["c"], on_judge_error="skip-row")


def test_unequal_columns_are_refused_before_the_judge_is_asked():
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        call_reward(length, ["p", "q"], ["c"])
    assert call_reward(length, [], []).scores == []


def test_symmetric_cancels_a_liking_for_first_place():
    pref = symmetric(lambda prompts, a, b, **_: [0.9 if x == y else 0.95 for x, y in zip(a, b)])
    assert call_preference(pref, ["p"], ["x"], ["x"]).scores == [pytest.approx(0.5)]


def test_symmetric_answers_sum_to_one():
    pref = symmetric(lambda prompts, a, b, **_: [min(1.0, 0.1 * len(x)) for x in a])
    there = call_preference(pref, ["p"], ["xxx"], ["y"]).scores[0]
    back = call_preference(pref, ["p"], ["y"], ["xxx"]).scores[0]
    assert there == pytest.approx(0.6)
    assert there + back == pytest.approx(1.0)


def test_as_preference_is_bradley_terry_and_survives_large_rewards():
    pref = as_preference(length)
    p = call_preference(pref, ["p"] * 3, ["xx", "x", "x" * 2000], ["x", "xx", ""], {"completion_ids": [[1]] * 3}).scores
    assert p == [pytest.approx(1 / (1 + math.exp(-1))), pytest.approx(1 / (1 + math.e)), 1.0]


def test_as_reward_compares_with_the_named_column():
    reward = as_reward(as_preference(length), against="reference")
    assert call_reward(reward, ["p"], ["xx"], {"reference": ["yy"]}).scores == [0.5]
    with pytest.raises(JudgeError, match='no column "reference"'):
        call_reward(reward, ["p"], ["xx"])


def test_none_passes_through_every_adapter():
    mute = lambda prompts, **_: [None] * len(prompts)  # noqa: E731
    assert call_preference(symmetric(mute), ["p"], ["a"], ["b"]).scores == [None]
    assert call_preference(as_preference(mute), ["p"], ["a"], ["b"]).scores == [None]
    assert call_reward(as_reward(mute, against="r"), ["p"], ["a"], {"r": ["b"]}).scores == [None]


def test_matrix_asks_each_pair_once_and_mirrors_it():
    calls = []

    def pref(prompts, a, b, source):
        calls.append((prompts, a, b, source))
        return [0.8 if len(x) > len(y) else 0.3 for x, y in zip(a, b)]

    found = matrix(pref, ["p", "q"], [["xx", "x", "xxx"], ["x", "xx", "xxx"]], {"source": ["s", "t"]})
    assert found.shape == (2, 3, 3)
    assert found[0].tolist() == pytest.approx(np.array([[0.5, 0.8, 0.3], [0.2, 0.5, 0.3], [0.7, 0.7, 0.5]]))
    assert np.allclose(found + found.transpose(0, 2, 1), 1)
    assert len(calls) == 1
    assert calls[0][0] == ["p"] * 3 + ["q"] * 3
    assert calls[0][3] == ["s"] * 3 + ["t"] * 3


def test_matrix_marks_what_nobody_judged_and_names_the_prompts_row():
    pref = lambda prompts, a, b: [None if "b" in (x, y) else 1.0 for x, y in zip(a, b)]  # noqa: E731
    found = matrix(pref, ["p"], [["a", "b", "c"]])[0]
    assert found[0, 2] == 1.0
    assert np.isnan(found[[0, 1, 1, 2], [1, 0, 2, 1]]).all()
    with pytest.raises(JudgeError, match="row 2: the judge answered"):
        matrix(lambda prompts, a, b: [0.5, math.nan], ["p", "q"], [["a", "b"], ["a", "b"]])
    with pytest.raises(ValueError, match="equally many answers"):
        matrix(pref, ["p", "q"], [["a", "b"], ["a"]])
    assert matrix(pref, [], []).shape == (0, 0, 0)
