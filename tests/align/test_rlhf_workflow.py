"""Iterative DPO: which two answers make a pair, what length costs, who draws, and what earlier rounds leave behind."""

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.align.preference import Pairs
from maypole.align.preference_options import PreferenceOptions
from maypole.align.rlhf_workflow import IterativeDPO, best_and_worst, pair_by
from maypole.align.rlhf_workflow_options import PAIRS, WorkflowOptions
from maypole.core.errors import ConfigError, JudgeError
from maypole.engine import Sampling
from maypole.train import fit, losses
from tests.align.online_fixtures import policy, rows_of, run, samples_of, training

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), min_size=2, max_size=6)


def sample_of(scores: list[float], lengths: list[int] | None = None, row: int = 0) -> dict[str, Any]:
    """A judged sample whose answers are as long as `lengths` says in tokens, twice that in characters."""
    lengths = lengths or [2] * len(scores)
    return {
        "prompt": "p", "prompt_ids": [1], "scores": scores, "row": row, "version": 1,
        "completions": ["ab" * n for n in lengths], "completion_ids": [[10 + i] * n for i, n in enumerate(lengths)],
    }  # fmt: skip


def places(row: dict[str, Any] | None) -> tuple[int, int] | None:
    return None if row is None else (row["chosen_ids"][0] - 10, row["rejected_ids"][0] - 10)


def allowed(rule: str, scores: list[float], lengths: list[int], penalty: float) -> set[tuple[int, int] | None]:
    """All that a rule may make of a sample, by looking at all its pairs."""
    net = [s - penalty * n for s, n in zip(scores, lengths)]
    k, top, low = len(net), max(net), min(net)
    ordered = [(i, j) for i in range(k) for j in range(k) if net[i] > net[j]]
    if not ordered:
        return {None}
    first = net.index(top)
    second = max(value for value in net if value < top)
    wanted = {
        "max_min": [(first, net.index(low))],
        "max_max": [(first, net.index(second))],
        "max_random": [(i, j) for i, j in ordered if i == first],
        "random": ordered,
    }[rule]
    return {(i, j) if scores[i] != scores[j] else None for i, j in wanted}


@pytest.mark.parametrize("rule", PAIRS)
@settings(max_examples=200, deadline=None)
@given(scores=SCORES, data=st.data(), penalty=st.sampled_from([0.0, 0.1, 1.0]), row=st.integers(0, 10_000))
def test_a_rule_takes_what_it_says_by_the_penalised_score(rule: Any, scores: list, data: Any, penalty: float, row: int):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(scores), max_size=len(scores)))
    options = WorkflowOptions(pair=rule, length_penalty=penalty)
    sample = sample_of(scores, lengths, row)
    found = pair_by(options, sample)
    assert places(found) in allowed(rule, scores, lengths, penalty)
    assert found == pair_by(options, sample)
    if found is not None:
        assert (found["chosen_score"], found["rejected_score"]) == tuple(scores[i] for i in places(found) or ())


def test_random_rules_reach_every_pair_they_may():
    scores = [0.0, 3.0, 1.0, 2.0]
    rules: list[tuple[Any, int]] = [("max_random", 3), ("random", 6)]
    for rule, count in rules:
        options = WorkflowOptions(pair=rule)
        seen = {places(pair_by(options, sample_of(scores, row=row))) for row in range(200)}
        assert len(seen) == count
        assert all(two is not None and scores[two[0]] > scores[two[1]] for two in seen)


def test_without_a_penalty_best_and_worst_are_the_pair():
    assert places(best_and_worst(sample_of([1.0, 3.0, -2.0]))) == (1, 2)
    assert best_and_worst(sample_of([1.0, 1.0, 1.0])) is None


def test_a_large_penalty_takes_the_shortest_against_the_longest_whoever_the_judge_likes():
    sample = sample_of([0.0, 5.0, 3.0], [1, 9, 4])
    assert places(pair_by(WorkflowOptions(), sample)) == (1, 0)
    assert places(pair_by(WorkflowOptions(length_penalty=1e6), sample)) == (0, 1)
    row = pair_by(WorkflowOptions(length_penalty=1e6), sample)
    assert row is not None  # what the judge said stays as it was
    assert (row["chosen_score"], row["rejected_score"]) == (0.0, 5.0)


def test_where_the_judge_tells_two_answers_not_apart_the_penalty_alone_teaches_nothing():
    assert pair_by(WorkflowOptions(length_penalty=0.1), sample_of([1.0, 1.0], [2, 8])) is None
    assert pair_by(WorkflowOptions(length_penalty=0.5), sample_of([2.0, 1.0], [4, 2])) is None  # 0 and 0


def test_length_is_counted_in_tokens_or_in_characters():
    sample = sample_of([1.0, 0.0], [6, 2])
    assert places(pair_by(WorkflowOptions(length_penalty=0.2), sample)) == (0, 1)
    assert places(pair_by(WorkflowOptions(length_penalty=0.2, length_unit="char"), sample)) == (1, 0)
    said = [[{"role": "assistant", "content": text}] for text in sample["completions"]]
    talk = sample | {"completions": said}
    assert places(pair_by(WorkflowOptions(length_penalty=0.2, length_unit="char"), talk)) == (1, 0)


def test_several_temperatures_share_out_the_draws(tmp_path):
    method = IterativeDPO(sampling=Sampling(n=5, max_tokens=6), options=WorkflowOptions(temperatures=(0.7, 1.0)))
    assert [(draw.n, draw.temperature) for draw in method.draws] == [(3, 0.7), (2, 1.0)]
    run(tmp_path / "out", method=method, rounds=1)
    assert {len(sample["completions"]) for sample in samples_of(tmp_path / "out", 0)} == {5}
    with pytest.raises(ConfigError, match="at most as many as answers"):
        IterativeDPO(sampling=Sampling(n=1), options=WorkflowOptions(temperatures=(0.7, 1.0)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pair": "min_max"}, "--pair"),
        ({"length_unit": "byte"}, "--length-unit"),
        ({"length_penalty": -1.0}, "--length-penalty"),
        ({"length_penalty": float("nan")}, "--length-penalty"),
        ({"temperatures": (1.0, 1.0)}, "none twice"),
    ],
)
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        WorkflowOptions(**wrong)


def test_a_score_that_is_no_number_never_makes_a_pair(tmp_path):
    def broken(prompts: list, completions: list, **columns: Any) -> list[float]:
        return [float("nan")] * len(prompts)

    with pytest.raises(JudgeError, match="row"):
        run(tmp_path / "out", judge=broken)


def histories(out: Any) -> list[list[int]]:
    return [[row["round"] for row in rows_of(out, round)] for round in range(3)]


def test_with_all_history_a_round_has_the_rows_of_all_rounds_before(tmp_path):
    run(tmp_path / "none")
    assert "round" not in rows_of(tmp_path / "none", 1)[0]
    run(tmp_path / "all", history="all")
    first, second, third = (rows_of(tmp_path / "all", round) for round in range(3))
    own = [json.loads((tmp_path / "all" / "rounds" / f"{r:03}" / "report.json").read_text())["rows"] for r in range(3)]
    assert [len(first), len(second), len(third)] == np.cumsum(own).tolist()
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert histories(tmp_path / "all")[2] == [r for r in range(3) for _ in range(own[r])]
    # Of round 0 nothing is different; later answers are other policies'.
    assert [{k: v for k, v in row.items() if k != "round"} for row in first] == rows_of(tmp_path / "none", 0)
    table = json.loads((tmp_path / "all" / "rounds.json").read_text())
    assert [line["history"] for line in table] == [0, own[0], own[0] + own[1]]


def test_a_sample_of_history_is_at_most_as_large_as_the_round(tmp_path):
    run(tmp_path / "out", history="sample")
    earlier: list[int] = []
    for round, seen in enumerate(histories(tmp_path / "out")):
        new = [number for number in seen if number == round]
        old = [number for number in seen if number < round]
        assert len(old) == (min(len(new), len(earlier)) if round else 0)
        earlier += new
    rows = {r: {json.dumps(row) for row in rows_of(tmp_path / "out", r) if row["round"] == r} for r in range(3)}
    for row in rows_of(tmp_path / "out", 2):
        assert json.dumps(row) in rows[row["round"]]


def test_every_round_may_begin_at_the_first_weights_again(tmp_path):
    """One step a round: after the last one the policy is one step of the last round's rows from the first policy."""
    fresh = {"optimizer": "fresh", "examples_per_step": 8, "peft": None, "learning_rate": 1e-3}
    train = training(init="initial", **fresh)
    _, again = run(tmp_path / "initial", train=train)
    rows = pq.read_table(tmp_path / "initial" / "rounds" / "002" / "rows.parquet")
    start, on = policy(), training(**fresh)
    fit(start, Dataset(rows), Pairs(), on, out=tmp_path / "one", seed=0, reference="initial")
    for (name, found), wanted in zip(again.model.named_parameters(), start.model.parameters()):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6, msg=name)
    _, gone_on = run(tmp_path / "previous", train=training(**fresh))
    apart = [float((a - b).detach().abs().max()) for a, b in zip(gone_on.model.parameters(), start.model.parameters())]
    assert max(apart) > 5e-4
    with pytest.raises(ConfigError, match="optimizer fresh"):
        training(init="initial")


def logps_of(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    table = torch.log_softmax(model(torch.tensor([prompt + answer]), use_cache=False).logits[0], -1)
    return table[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_two_answers_and_one_step_a_round_are_online_dpo_by_hand(tmp_path):
    """In every round the policy as it is answers twice, and takes one step that is held to its own start."""
    beta, rate, epsilon = 0.1, 1e-2, 1e-2  # an epsilon that keeps a rounded gradient from becoming a whole step
    train = training(
        examples_per_step=8, learning_rate=rate, adam_epsilon=epsilon, lr_scheduler_type="constant", peft=None,
        max_grad_norm=0.0,
    )  # fmt: skip
    method = IterativeDPO(PreferenceOptions(beta=beta), Sampling(n=2, max_tokens=6))
    _, ours = run(tmp_path / "out", method=method, train=train, rounds=4)
    model, start = policy().model, policy().model
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=epsilon, weight_decay=0.0)
    for round in range(4):
        every: list[torch.Tensor] = []
        for sample in samples_of(tmp_path / "out", round):
            ahead = []
            for ids, said in zip(sample["completion_ids"], sample["logprobs"]):
                logps = logps_of(model, sample["prompt_ids"], ids)
                assert logps.tolist() == pytest.approx(said, abs=2e-4)  # it is this policy that has answered
                ahead.append(logps.sum() - logps_of(start, sample["prompt_ids"], ids).sum().detach())
            first, second = sample["scores"]
            if first != second:
                sign = 1 if first > second else -1
                every.append(-torch.nn.functional.logsigmoid(beta * sign * (ahead[0] - ahead[1])))
        optimizer.zero_grad()
        torch.stack(every).mean().backward()
        optimizer.step()
    for (name, found), wanted in zip(ours.model.named_parameters(), model.parameters()):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6, msg=name)
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), start.parameters()))
    assert moved > 1e-3


def test_the_minimiser_of_dpo_is_the_start_times_the_exponential_of_the_reward():
    """Eight answers that may all be drawn, labels in the proportions of Bradley-Terry: π = π_0 exp(r/β)/Z."""
    draw = torch.Generator().manual_seed(0)
    k, beta = 8, 0.5
    reward = torch.randn(k, generator=draw, dtype=torch.float64)
    start = torch.randn(k, generator=draw, dtype=torch.float64).log_softmax(0)
    logits = start.clone().requires_grad_()
    first, second = torch.triu_indices(k, k, 1)
    wins = torch.sigmoid(reward[first] - reward[second])
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        now = logits.log_softmax(0)
        won = losses.dpo(now[first], now[second], start[first], start[second], beta=beta)
        lost = losses.dpo(now[second], now[first], start[second], start[first], beta=beta)
        total = (wins * won + (1 - wins) * lost).sum()
        total.backward()
        return total

    optimizer.step(closure)
    wanted = (start + reward / beta).softmax(0)
    torch.testing.assert_close(logits.detach().softmax(0), wanted, atol=1e-3, rtol=0)
    assert float((wanted - start.exp()).abs().max()) > 0.1
