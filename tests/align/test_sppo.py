"""SPPO: which answers it learns from, with which targets, packed as one by one, and through the online loop."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from maypole.align.preference_matrix import win_rates
from maypole.align.sppo import AllAnswers, BestAndWorst, Sppo, best_and_worst
from maypole.core.errors import ConfigError, DataError
from maypole.core.identity import digest
from maypole.data import PAIR, read
from maypole.engine import Sampling
from maypole.train import TokenBatch
from maypole.train.fit import fit
from tests.align.online_fixtures import policy, prefers, rows_of, run, samples_of, training
from tests.train.train_fixtures import lines_of

CIRCLE = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
ORDER = [[0.5, 0.25, 0.75], [0.75, 0.5, 1.0], [0.25, 0.0, 0.5]]
"""The second answer is best, the third worst."""


def judged(matrix: Any, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": "p", "prompt_ids": [1, 2], "completions": ["a", "b", "c"], "completion_ids": [[5, 3], [6, 3], [7]],
        "probabilities": matrix, "scores": [0.0, 0.0, 0.0], **changes,
    }  # fmt: skip


def test_the_best_and_the_worst_by_their_rates_of_winning_are_learnt_as_they_were_sampled():
    row = best_and_worst(judged(ORDER))
    assert row == {
        "prompt": "p", "chosen": "b", "rejected": "c", "prompt_ids": [1, 2], "chosen_ids": [6, 3], "rejected_ids": [7],
        "chosen_probs": 1.0, "chosen_probs_win": 0.75, "chosen_probs_lose": 0.25,
    }  # fmt: skip
    PAIR.check(row or {})


def test_answers_that_all_win_as_often_teach_nothing():
    method = Sppo(Sampling(n=3))
    samples = Dataset.from_list([judged(CIRCLE), judged(ORDER), judged(np.full((3, 3), 0.5).tolist())])
    assert method.rows(samples)["chosen"] == ["b"]
    assert Sppo(Sampling(n=3), select="all").rows(samples)["scores"] == [[0.5, 0.75, 0.25]]


def test_a_matrix_that_does_not_sum_to_one_is_refused():
    with pytest.raises(ValueError, match="is 1 off by"):
        best_and_worst(judged([[0.5, 0.9, 0.1], [0.2, 0.5, 0.9], [0.9, 0.1, 0.5]]))


def batch(names: list[str], logps: list[float], reference: list[float], **columns: Any) -> TokenBatch:
    """One row whose answers have a token each."""
    n = len(names)
    return TokenBatch(
        logps=torch.tensor(logps), reference=torch.tensor(reference), weights=torch.ones(n), segment=torch.arange(n),
        names=names, row=torch.zeros(n, dtype=torch.long), rows=1, columns=columns,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "targets"), [("soft", (0.75, 0.125)), ("single", (0.9, 0.1)), ("hard", (1.0, 0.0))]
)
def test_a_variant_is_what_its_targets_are(variant: Any, targets: tuple[float, float]):
    probabilities = {"chosen_probs": 0.9, "chosen_probs_win": 0.75, "chosen_probs_lose": 0.125}
    given = batch(
        ["chosen", "rejected"], [-2.0, -3.0], [-2.5, -2.0], **{k: torch.tensor([v]) for k, v in probabilities.items()}
    )
    loss = BestAndWorst(8.0, variant)(given)
    a, b = 0.5 - 8 * (targets[0] - 0.5), -1.0 - 8 * (targets[1] - 0.5)
    assert float(loss.sum) == pytest.approx((a**2 + b**2) / 2)
    metrics: Any = loss.metrics
    assert float(metrics["distance"]) == pytest.approx((a**2 + b**2) / 128)
    assert float(metrics["rewards/margins"]) == pytest.approx(1.5 / 8)


def test_all_answers_of_two_are_the_best_and_the_worst():
    p = win_rates([[0.5, 0.9], [0.1, 0.5]])
    pair = batch(
        ["chosen", "rejected"], [-2.0, -3.0], [-2.5, -2.0],
        chosen_probs=torch.tensor([0.9]), chosen_probs_win=torch.tensor(p[:1]), chosen_probs_lose=torch.tensor(p[1:]),
    )  # fmt: skip
    every = batch(["0", "1"], [-2.0, -3.0], [-2.5, -2.0], scores=[p.tolist()])
    assert float(AllAnswers(8.0)(every).sum) == pytest.approx(float(BestAndWorst(8.0)(pair).sum))


def test_a_prompt_with_fewer_answers_than_others_is_the_mean_of_its_own():
    one = batch(["0", "1"], [-2.0, -3.0], [-2.5, -2.0], scores=[[0.75, 0.25]])
    two = TokenBatch(
        logps=torch.tensor([-2.0, -3.0, -1.0, -1.0, -1.0]), reference=torch.tensor([-2.5, -2.0, -1.0, -1.0, -1.0]),
        weights=torch.ones(5), segment=torch.arange(5), names=["0", "1", "0", "1", "2"],
        row=torch.tensor([0, 0, 1, 1, 1]), rows=2, columns={"scores": [[0.75, 0.25], [0.5, 0.5, 0.5]]},
    )  # fmt: skip
    assert float(AllAnswers(8.0)(two).sum) == pytest.approx(float(AllAnswers(8.0)(one).sum))


@pytest.mark.parametrize("select", ["max_min", "all"])
def test_every_round_of_the_loop_begins_at_the_policy_that_answered(tmp_path, select: Any):
    method = Sppo(Sampling(n=3, max_tokens=6), eta=8.0, select=select)
    run(tmp_path / "out", judge=prefers, method=method, reference="previous", train=training(examples_per_step=8))
    distances = [line["distance"] for line in lines_of(tmp_path / "out") if "distance" in line]
    assert len(distances) == 3
    for round in range(3):
        samples = {s["prompt"]: s for s in samples_of(tmp_path / "out", round)}
        targets = []
        for row in rows_of(tmp_path / "out", round):
            sample = samples[row["prompt"]]
            rates = win_rates(sample["probabilities"])
            if select == "max_min":
                assert row["chosen_ids"] == sample["completion_ids"][rates.argmax()]
                assert row["rejected_ids"] == sample["completion_ids"][rates.argmin()]
                targets.append([row["chosen_probs_win"], row["chosen_probs_lose"]])
            else:
                assert row["completion_ids"] == sample["completion_ids"]
                targets.append(row["scores"])
            np.testing.assert_allclose([max(targets[-1]), min(targets[-1])], [rates.max(), rates.min()])
        assert len(targets) == 8
        assert distances[round] == pytest.approx(np.mean((np.array(targets) - 0.5) ** 2), rel=1e-4)


def test_rows_of_chats_with_probabilities_from_elsewhere_are_learnt(tmp_path):
    chat = [{"role": "user", "content": "Who?"}]
    rows = [
        {
            "prompt": chat,
            "chosen": [{"role": "assistant", "content": f"Mara {i}."}],
            "rejected": [{"role": "assistant", "content": "Nobody."}],
            "chosen_probs": 0.9, "chosen_probs_win": 0.75, "chosen_probs_lose": 0.25,
        }
        for i in range(4)
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet", PAIR)
    lm = policy()
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fit(lm, found, BestAndWorst(8.0), training(max_steps=1), out=tmp_path / "out", reference="initial")
    assert lines_of(tmp_path / "out")[0]["distance"] == pytest.approx(0.0625)


def test_what_is_no_rate_of_winning_is_refused_with_its_row(tmp_path):
    rows = Dataset.from_list([
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_probs": 0.9, "chosen_probs_win": 75.0,
         "chosen_probs_lose": 0.2}
    ])  # fmt: skip
    rows._fingerprint = digest("wrong")
    with pytest.raises(DataError, match=r"75\.0 is no rate of winning") as caught:
        fit(policy(), rows, BestAndWorst(8.0), training(max_steps=1), out=tmp_path / "out", reference="initial")
    assert (caught.value.row, caught.value.field) == (1, "chosen_probs_win")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eta": 0.0}, "eta"),
        ({"variant": "firm"}, "variant"),
        ({"select": "best"}, "select"),
        ({"select": "all", "variant": "hard"}, "soft with --select all"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        Sppo(**settings)
