"""Pairs that were given are rows of the round before the first, for a round to learn from again."""

import json
import math
from typing import Any

import pytest
from datasets import Dataset

from maypole.align.sppo import Sppo
from maypole.core.errors import ConfigError, DataError, UserError
from maypole.engine import Sampling
from tests.align.online_fixtures import given_pairs, rows_of, run, samples_of, training
from tests.train.train_fixtures import lines_of


def reports(out: Any) -> list[dict[str, Any]]:
    return json.loads((out / "rounds.json").read_text())


def test_with_all_history_every_round_has_the_given_pairs_first(tmp_path):
    artifact, _ = run(tmp_path / "out", history="all", first_history=given_pairs(5), rounds=2)
    own = [line["rows"] for line in reports(tmp_path / "out")]
    for round in range(2):
        rows = rows_of(tmp_path / "out", round)
        assert [row["round"] for row in rows] == [-1] * 5 + [r for r in range(round + 1) for _ in range(own[r])]
        assert [row["prompt"] for row in rows[:5]] == given_pairs(5)["prompt"]
        assert {row["prompt_ids"] is None for row in rows[:5]} == {True}
        assert {row["prompt_ids"] is None for row in rows[5:]} == {False}
    assert [(line["history"], line["given"]) for line in reports(tmp_path / "out")] == [(5, 5), (5 + own[0], 5)]
    assert artifact.manifest["metrics"]["given"] == 5
    assert artifact.manifest["metrics"]["rows"] == 5 + sum(own)


def test_the_policy_is_held_to_its_own_start_on_given_pairs_too(tmp_path):
    """At the first step it has not moved: every pair, given or drawn, has a margin of 0, and a loss of log 2."""
    run(
        tmp_path / "out", history="all", first_history=given_pairs(5), rounds=1,
        train=training(examples_per_step=64, logging_steps=1),
    )  # fmt: skip
    first = next(line for line in lines_of(tmp_path / "out") if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_sample_of_history_is_drawn_from_given_pairs_and_earlier_rounds(tmp_path):
    run(tmp_path / "out", history="sample", first_history=given_pairs(40))
    for line in reports(tmp_path / "out"):
        rounds = [row["round"] for row in rows_of(tmp_path / "out", line["round"])]
        assert rounds.count(line["round"]) == line["rows"] == line["history"]
        assert rounds.count(-1) == line["given"] > 0
    known = set(given_pairs(40)["prompt"])
    drawn = [row["prompt"] for row in rows_of(tmp_path / "out", 2) if row["round"] == -1]
    assert set(drawn) <= known
    assert len(set(drawn)) == len(drawn)


def test_messages_and_scores_of_given_pairs_stay(tmp_path):
    talks = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"number {i}"}] for i in range(4)]})
    given = {
        "prompt": [[{"role": "user", "content": "which?"}]],
        "chosen": [[{"role": "assistant", "content": "this"}]], "rejected": [[{"role": "assistant", "content": "no"}]],
        "chosen_score": [9], "rejected_score": [1], "source": ["a book"],
    }  # fmt: skip
    run(
        tmp_path / "out", rows=talks, rounds=1, prompts_per_round=4, history="all",
        first_history=Dataset.from_dict(given),
    )  # fmt: skip
    first = rows_of(tmp_path / "out", 0)[0]
    assert (first["chosen"], first["chosen_score"]) == (given["chosen"][0], 9.0)
    assert "source" not in first


def test_what_given_pairs_cannot_be_is_said_before_anything_is_drawn(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="all or sample, where a first history is given"):
        run(out, first_history=given_pairs())
    talks = {
        "prompt": [[{"role": "user", "content": "a"}]], "chosen": [[{"role": "assistant", "content": "b"}]],
        "rejected": [[{"role": "assistant", "content": "c"}]],
    }  # fmt: skip
    with pytest.raises(DataError, match="the prompts are messages, those to be answered text"):
        run(out, history="all", first_history=Dataset.from_dict(talks))
    with pytest.raises(UserError, match="none of 5 rows can teach anything"):
        run(out, history="all", first_history=given_pairs(5, rejected=[" ribbons"] * 5))
    with pytest.raises(DataError, match="chosen_probs"):  # the columns that this objective learns from
        run(out, history="all", first_history=given_pairs(), method=Sppo(Sampling(n=3, max_tokens=6), eta=4.0))
    assert not out.exists()
    assert not out.with_name("out.part").exists()


def test_the_answers_drawn_do_not_depend_on_given_pairs(tmp_path):
    run(tmp_path / "with", history="all", first_history=given_pairs(), rounds=1)
    run(tmp_path / "without", history="all", rounds=1)
    assert samples_of(tmp_path / "with", 0) == samples_of(tmp_path / "without", 0)
    own = [row for row in rows_of(tmp_path / "with", 0) if row["round"] == 0]
    assert [row["chosen_ids"] for row in own] == [row["chosen_ids"] for row in rows_of(tmp_path / "without", 0)]
