"""The online loop: fresh samples of the policy as it is, judged, made into rows, trained on, and kept."""

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.judging import judged
from maypole.align.measuring import measured
from maypole.align.online import OnlineRounds, drawn_prompts
from maypole.align.preference import Pairs
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.core.errors import ConfigError, DataError, UserError
from maypole.data import PAIR, SAMPLES
from maypole.data.chat import Dropped, encode_completion, encode_prompt
from maypole.engine import Engine, Sampling
from maypole.train import Segment
from tests.align.online_fixtures import (
    LEARNERS,
    low_bytes,
    policy,
    prefers,
    prompts,
    rows_of,
    run,
    samples_of,
    training,
)
from tests.engine.engine_fixtures import hf_logprobs
from tests.train.train_fixtures import lines_of, store_of


def test_every_round_keeps_its_samples_and_the_rows_made_of_them(tmp_path):
    artifact, _ = run(tmp_path / "out")
    assert artifact.finished
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    seen = [sample["row"] for sample in samples_of(tmp_path / "out", 0)]
    assert sorted(seen) == list(range(8))
    for round in range(3):
        samples = {s["prompt"]: s for s in samples_of(tmp_path / "out", round)}
        for sample in samples.values():
            SAMPLES.check(sample)
            assert sample["version"] == round
            assert sample["source"] == ["sample"] * 3
            assert sample["scores"] == low_bytes([], sample["completions"])
        for row in rows_of(tmp_path / "out", round):
            PAIR.check(row)
            sample = samples[row["prompt"]]
            best, worst = np.argmax(sample["scores"]), np.argmin(sample["scores"])
            assert row["chosen_ids"] == sample["completion_ids"][best]
            assert row["rejected_ids"] == sample["completion_ids"][worst]
            assert row["prompt_ids"] == sample["prompt_ids"]
    lines = lines_of(tmp_path / "out")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 7))
    assert [(line["step"], line["round"], line["rows"]) for line in lines if "round" in line] == [
        (1 + 2 * round, round, len(rows_of(tmp_path / "out", round))) for round in range(3)
    ]


@pytest.mark.parametrize("learner", ["adapter", "all weights"])
def test_every_round_is_drawn_by_the_weights_of_that_moment_through_one_engine(tmp_path, monkeypatch, learner: str):
    made: list[Engine] = []
    begin = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: made.append(self) or begin(self, *a, **k))
    lm = policy()
    policies: list[Any] = []
    draws = OnlineRounds._sample

    def seen(self: Any, round: int, lm: Any, path: Any) -> None:
        policies.append(deepcopy(lm.model))
        draws(self, round, lm, path)

    monkeypatch.setattr(OnlineRounds, "_sample", seen)
    # One step a round: the policy is fresh at every step.
    run(tmp_path / "out", lm=lm, train=training(examples_per_step=8, **LEARNERS[learner]))
    assert len(made) == 1
    shared = {p.data_ptr() for p in lm.transformer.parameters()}
    assert sum(p.data_ptr() in shared for p in made[0]._runner.module.parameters()) > 0
    assert len([line for line in lines_of(tmp_path / "out") if "loss" in line]) == 3
    for round, model in enumerate(policies):
        sample = samples_of(tmp_path / "out", round)[0]
        for ids, logprobs in zip(sample["completion_ids"], sample["logprobs"]):
            assert hf_logprobs(model, sample["prompt_ids"], ids) == pytest.approx(logprobs, abs=2e-4)
    before, after = (hf_logprobs(policies[i], [1, 70, 71], [80, 81]) for i in (0, 2))
    assert before != pytest.approx(after, abs=1e-3)


def test_an_answer_that_met_its_limit_is_learnt_as_it_is_without_an_end(tmp_path):
    run(tmp_path / "out", rounds=1, method=IterativeDPO(sampling=Sampling(n=3, max_tokens=4)))
    rows = rows_of(tmp_path / "out", 0)
    samples = {s["prompt"]: s for s in samples_of(tmp_path / "out", 0)}
    lm = policy()
    cut = 0
    for row in rows:
        tree = Pairs().segments(row, lm.tokenizer)
        assert isinstance(tree, Segment)
        sample = samples[row["prompt"]]
        ends = {tuple(ids): finished for ids, finished in zip(sample["completion_ids"], sample["finished"])}
        assert tree.ids == sample["prompt_ids"]
        for child in tree.children:
            finished = ends[tuple(child.ids)]
            assert (child.ids[-1] in lm.end_tokens) == finished
            cut += not finished
    assert cut > 0


def test_a_preference_gives_a_matrix_and_mean_win_rates(tmp_path):
    run(tmp_path / "out", judge=prefers, rounds=1)
    for sample in samples_of(tmp_path / "out", 0):
        table = np.array(sample["probabilities"])
        assert np.allclose(table + table.T, 1)
        assert np.allclose(np.diag(table), 0.5)
        assert np.allclose(sample["scores"], table.mean(axis=1))
        liked = np.array(low_bytes([], sample["completions"]))
        both_orders = 0.85 if liked[0] > liked[1] else 0.15 if liked[0] < liked[1] else 0.5
        assert table[0, 1] == pytest.approx(both_orders)


def test_a_method_that_wants_probabilities_gets_them_from_a_reward_too():
    answers = {"completions": ["a", "b", "a"], "completion_ids": [[1], [2], [1]], "prompt": "x", "row": 0}
    asked: list[str] = []

    def noisy(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        asked.extend(completions)
        return [float(len(asked)), 5.0]

    (sample,) = judged([answers], noisy, "preference", ())
    assert asked == ["a", "b"]  # equal answers are asked about once, and are equal
    assert sample["scores"] == [2.0, 5.0, 2.0]
    assert sample["probabilities"][0][2] == 0.5
    assert sample["probabilities"][1][0] == pytest.approx(1 / (1 + np.exp(-3)))


def test_answers_of_the_data_are_candidates_and_the_judge_sees_its_columns(tmp_path):
    class WithGiven(IterativeDPO):
        @property
        def answers(self) -> tuple[str, ...]:
            return ("chosen",)

    seen: set[str] = set()

    def judge(prompts: list, completions: list, **columns: Any) -> list[float]:
        seen.update(columns)
        assert [len(ids) > 0 for ids in columns["completion_ids"]] == [True] * len(prompts)
        return [1.0 if text == "yes" else -len(text) for text in completions]

    rows = prompts(4, chosen=["yes"] * 4, topic=["a", "b", "c", "d"])
    method = WithGiven(sampling=Sampling(n=2, max_tokens=4))
    run(tmp_path / "out", rows=rows, judge=judge, method=method, rounds=1, prompts_per_round=None)
    assert seen == {"chosen", "topic", "completion_ids"}
    for sample in samples_of(tmp_path / "out", 0):
        assert sample["source"] == ["sample", "sample", "chosen"]
        assert sample["logprobs"][2] is None
        whole = encode_completion(sample["prompt"], "yes", policy().tokenizer)
        assert not isinstance(whole, Dropped)
        assert sample["prompt_ids"] + sample["completion_ids"][2] == whole.ids
    assert {row["chosen"] for row in rows_of(tmp_path / "out", 0)} == {"yes"}


def test_messages_stay_messages(tmp_path):
    talks = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"number {i}"}] for i in range(4)]})
    run(tmp_path / "out", rows=talks, rounds=1, prompts_per_round=4)
    for row in rows_of(tmp_path / "out", 0):
        PAIR.check(row)
        assert row["chosen"][0]["role"] == "assistant"
        assert row["prompt_ids"] == encode_prompt(row["prompt"], policy().tokenizer)


def test_prompts_are_shared_out_or_drawn_pass_by_pass():
    shared = drawn_prompts(10, OnlineConfig(rounds=3), 0)
    assert sorted(np.concatenate(shared)) == list(range(10))
    assert [len(part) for part in shared] == [4, 3, 3]
    passes = drawn_prompts(10, OnlineConfig(rounds=5, prompts_per_round=4), 0)
    assert sorted(np.concatenate(passes)) == sorted([*range(10), *range(10)])
    with pytest.raises(ConfigError, match="at most 10, the number of prompts"):
        drawn_prompts(10, OnlineConfig(prompts_per_round=11), 0)
    with pytest.raises(ConfigError, match="at most 2, the number of prompts"):
        drawn_prompts(2, OnlineConfig(), 0)


def test_fewer_prompts_than_a_step_has_rows_make_a_small_step(tmp_path):
    run(tmp_path / "out", rows=prompts(3), rounds=2, prompts_per_round=3, train=training(examples_per_step=32))
    assert len([line for line in lines_of(tmp_path / "out") if "loss" in line]) == 2


def test_what_a_run_cannot_begin_with_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to compare"):
        run(tmp_path / "out", method=IterativeDPO(sampling=Sampling(n=1)))
    with pytest.raises(DataError, match="scores"):
        run(tmp_path / "out", rows=prompts(8, scores=[1.0] * 8))
    greedy = IterativeDPO(sampling=Sampling(n=2, temperature=0, max_tokens=3))
    with pytest.raises(UserError, match="round 0: it made no rows"):
        run(tmp_path / "alike", method=greedy)  # equal answers tell nothing
    assert not (tmp_path / "out").exists()


def test_a_pair_that_is_alike_once_cut_is_left_out_and_counted():
    texts = {"prompt": "a", "chosen": "bc", "rejected": "bd"}
    pair = texts | {"prompt_ids": [1, 9], "chosen_ids": [5, 6], "rejected_ids": [5, 7]}
    other = pair | {"rejected_ids": [8, 7]}
    rows = Dataset.from_list([pair, other])
    assert store_of(rows, Pairs(), policy(), max_length=3).dropped == {"answers are alike once cut": 1}
    assert store_of(rows, Pairs(), policy(), max_length=4).dropped == {}


@pytest.mark.parametrize("learner", ["adapter", "all weights"])
@pytest.mark.parametrize("judge", [low_bytes, prefers], ids=["reward", "preference"])
def test_measured_after_every_round_against_the_policy_before_the_first(tmp_path, learner: str, judge: Any):
    eval_prompts = prompts(6)
    train = training(**LEARNERS[learner])
    artifact, lm = run(
        tmp_path / "out", judge=judge, train=train, rounds=2, eval_max_tokens=5, reference="previous",
        eval_prompts=eval_prompts,
    )  # fmt: skip
    folder = tmp_path / "out" / "evaluations"
    first, last = (json.loads((folder / f"{n:03}.json").read_text()) for n in (0, 2))
    assert (first["eval_kl"], first["eval_win_rate"]) == (0.0, 0.5)
    assert last["eval_kl"] > 0.01
    for rounds, model in ((2, lm.model), (0, policy().model)):
        for row in pq.read_table(folder / f"{rounds:03}.parquet").to_pylist():
            ids = encode_prompt(row["prompt"], lm.tokenizer)
            assert hf_logprobs(model, ids, row["ids"]) == pytest.approx(row["logprobs"], abs=2e-4)
            assert hf_logprobs(policy().model, ids, row["ids"]) == pytest.approx(row["initial_logprobs"], abs=2e-4)
    table = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert [line["round"] for line in table] == [0, 1]
    assert table[1]["eval_kl"] == artifact.manifest["metrics"]["eval_kl"] == last["eval_kl"]
    logged = [line for line in lines_of(tmp_path / "out") if "round" in line]
    assert [line["eval_win_rate"] for line in logged] == [0.5, table[0]["eval_win_rate"]]


def test_what_samples_say_of_the_policy():
    sample = {
        "source": ["sample", "sample", "chosen"], "scores": [1.0, 3.0, 9.0], "completion_ids": [[5], [5, 6, 7], [8]],
        "finished": [True, False, True], "logprobs": [[-1.0], [-2.0, -1.0, 0.0], None],
    }  # fmt: skip
    twin = sample | {"completion_ids": [[5, 5], [5, 5], [8]], "logprobs": [[-1.0, 0.0], [-1.0, 0.0], None]}
    assert measured(Dataset.from_list([sample, twin])) == {
        "score": 2.0, "best_score": 3.0, "length": 2.0, "finished": 0.5, "nats_per_token": 6 / 8, "distinct": 0.75,
    }  # fmt: skip
