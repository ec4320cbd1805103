"""What a judge, or the answers themselves, can do to an online run: a wrong word stops it with its row and is never
learnt from, a missing one is counted, and the same call goes on."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from maypole.align.config import OnlineConfig
from maypole.align.online import drawn_prompts
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.core.errors import ConfigError, JudgeError
from maypole.engine import Sampling
from tests.align.online_fixtures import low_bytes, policy, prefers, prompts, rows_of, run, samples_of, training
from tests.train.test_resume import assert_same

ROUNDS = OnlineConfig(rounds=2, prompts_per_round=4)
ROW = int(drawn_prompts(8, ROUNDS, 5)[1][2])
"""A row of the second round."""
Fault = Callable[[list[float], int], Any]
FAULT: list[Fault] = []
"""While there is one, what becomes of the scores of a batch with ROW in it, first at the place given: the judge stays
the same function."""


def sometimes(prompts: list, completions: list, **columns: Any) -> Any:
    scores, asked = low_bytes(prompts, completions), f"{ROW} ribbons and"
    return FAULT[0](scores, prompts.index(asked)) if FAULT and asked in prompts else scores


def answers(value: Any) -> Fault:
    return lambda scores, at: [*scores[:at], value, *scores[at + 1 :]]


def raises(scores: list[float], at: int) -> Any:
    raise ConnectionError("nobody there")


async def times_out(scores: list[float], at: int) -> Any:
    await asyncio.wait_for(asyncio.Event().wait(), timeout=0)


def too_few(scores: list[float], at: int) -> list[float]:
    return scores[:-1]


BROKEN: dict[str, tuple[Fault, str]] = {
    "raises": (raises, "the judge raised ConnectionError: nobody there"),
    "times out": (times_out, "the judge raised TimeoutError"),
    "malformed JSON": (lambda scores, at: json.loads('{"score": '), "the judge raised JSONDecodeError"),
    "text that is no number": (answers("8 of 10"), "the judge answered '8 of 10'"),
    "NaN": (answers(math.nan), "the judge answered 'nan'"),
    "too few": (too_few, "the judge returned 0 answers"),
}


@pytest.fixture(autouse=True)
def _sound():
    FAULT.clear()
    yield
    FAULT.clear()


def test_a_broken_judge_stops_the_run_with_the_row_and_the_same_call_goes_on(tmp_path):
    def again(out: Any) -> None:
        run(out, judge=sometimes, rounds=2, prompts_per_round=4)

    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    again(whole)
    out, part = tmp_path / "run", tmp_path / "run.part"
    for name, (fault, says) in BROKEN.items():
        FAULT.append(fault)
        with pytest.raises(JudgeError, match=rf"row {ROW + 1}: {says}"):
            again(out)
        FAULT.clear()
        assert not out.exists()
        assert (part / "rounds" / "000" / "rows.parquet").is_file()
        assert not (part / "rounds" / "001").exists(), name
        kept = {path.name for path in (part / "checkpoints" / "round-001").iterdir()}
        assert kept == {"00000000.drawn.parquet"}, name
    again(out)
    assert_same(out, whole)


@pytest.mark.parametrize(
    ("fault", "on_judge_error"),
    [(answers(None), "stop"), (raises, "skip-row"), (too_few, "skip-row"), (answers(math.nan), "skip-row")],
    ids=["None", "raises", "too few", "NaN"],
)
def test_a_prompt_without_a_whole_judgement_is_kept_counted_and_not_learnt_from(tmp_path, fault, on_judge_error: str):
    FAULT.append(fault)
    given = {"rows": prompts(8), "rounds": 1, "prompts_per_round": 8, "on_judge_error": on_judge_error}
    run(tmp_path / "out", judge=sometimes, **given)
    (line,) = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert (line["prompts"], line["judged"]) == (8, 7)
    unjudged = [sample["row"] for sample in samples_of(tmp_path / "out", 0) if sample["scores"] is None]
    assert unjudged == [ROW]
    assert f"{ROW} ribbons and" not in {row["prompt"] for row in rows_of(tmp_path / "out", 0)}


def test_one_comparison_without_an_opinion_leaves_its_prompt_out(tmp_path):
    def unsure(prompts: list, a: list, b: list, **columns: Any) -> list[float | None]:
        found = prefers(prompts, a, b)
        first = next((i for i, prompt in enumerate(prompts) if prompt == f"{ROW} ribbons and"), None)
        return [None if i == first else p for i, p in enumerate(found)]

    run(tmp_path / "out", judge=unsure, rounds=1)
    for sample in samples_of(tmp_path / "out", 0):
        assert (sample["probabilities"] is None) == (sample["scores"] is None) == (sample["row"] == ROW)


def test_a_round_that_nobody_judged_is_an_error_that_leaves_its_samples(tmp_path):
    def silent(prompts: list, completions: list, **columns: Any) -> list[None]:
        return [None] * len(prompts)

    with pytest.raises(JudgeError, match="round 0: it judged all candidates of none of 8 prompts"):
        run(tmp_path / "out", judge=silent)
    assert not (tmp_path / "out").exists()


def test_too_few_prompts_are_an_error_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"--prompts-per-round: 8[\s\S]*at most 3, the number of prompts"):
        run(tmp_path / "out", rows=prompts(3))
    assert list(tmp_path.iterdir()) == []


def test_answers_that_a_judge_tells_not_apart_make_no_pair(tmp_path):
    def even(prompts: list, completions: list, **columns: Any) -> list[float]:
        return [1.0 if p == f"{ROW} ribbons and" else s for p, s in zip(prompts, low_bytes(prompts, completions))]

    run(tmp_path / "out", judge=even, rounds=1)
    (line,) = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert (line["judged"], line["rows"]) == (8, len(rows_of(tmp_path / "out", 0)))
    assert f"{ROW} ribbons and" not in {row["prompt"] for row in rows_of(tmp_path / "out", 0)}
    assert line["rows"] > 0


def test_a_pair_that_is_alike_once_cut_is_not_learnt_from_and_counted(tmp_path):
    class FromTheData(IterativeDPO):
        @property
        def answers(self) -> tuple[str, ...]:
            return ("good", "bad")

    def liked(prompts: list, completions: list, **columns: Any) -> list[float]:
        worth = {"yes": 1.0, "yes!": -1.0, "no": -1.0}
        return [worth.get(completion, 0.0) for completion in completions]

    rows = prompts(4, good=["yes"] * 4, bad=["no", "no", "yes!", "no"])
    lm = policy()
    longest = max(len(lm.tokenizer(prompt)["input_ids"]) for prompt in rows["prompt"])
    artifact, _ = run(
        tmp_path / "out", lm=lm, rows=rows, judge=liked, rounds=1, prompts_per_round=4,
        method=FromTheData(sampling=Sampling(n=1, max_tokens=3)), train=training(max_length=longest + 2),
    )  # fmt: skip
    assert len(rows_of(tmp_path / "out", 0)) == 4
    metrics = artifact.manifest["metrics"]
    assert (metrics["rows"], metrics["dropped"]) == (3, {"answers are alike once cut": 1})
    assert set(metrics["cut"]) <= {"chosen", "rejected"}
