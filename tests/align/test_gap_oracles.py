"""What the experiments rest on: where IPO ends, whose gradient fresh pairs have, and how standings are told."""

from collections import defaultdict
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from maypole.align.online_offline_gap.cells import cells
from maypole.align.online_offline_gap.config import EXPERIMENTS, GapConfig
from maypole.align.online_offline_gap.curves import compared, envelope, runs
from maypole.align.online_offline_gap.fixed import labelled
from maypole.align.online_offline_gap.fresh import FreshPairs, Winner, first_wins
from maypole.align.online_offline_gap.measuring import Contest, Sign
from maypole.align.online_offline_gap.replay import Recorded, Shuffled
from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.core.errors import ConfigError, JudgeError
from maypole.evaluate.kl import divergence
from maypole.train.losses import ipo
from tests.align.online_fixtures import policy
from tests.train.train_fixtures import passed, store_of

ZERO = torch.zeros((), dtype=torch.float64)


def least(p: float, beta: float) -> float:
    """h of two answers with one free logit, where the first is chosen with probability p, by Newton's method."""
    z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(60):
        first, second = torch.log_softmax(torch.stack([z, ZERO]), 0)
        at_start = torch.log(torch.tensor(0.5, dtype=torch.float64))
        loss = p * ipo(first, second, at_start, at_start, beta=beta)
        loss = loss + (1 - p) * ipo(second, first, at_start, at_start, beta=beta)
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        (bend,) = torch.autograd.grad(slope, z)
        with torch.no_grad():
            z -= slope / bend
    return float(z.detach())  # = log π(first)/π(second), and both began alike


@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_ends_at_its_target_by_how_often_an_answer_is_chosen(p: float, beta: float):
    assert least(p, beta) == pytest.approx((2 * p - 1) / (2 * beta), abs=1e-9)


def test_fresh_pairs_have_the_gradient_of_the_closed_form_in_the_mean():
    beta, n, draws = 0.3, 5, 100_000
    rng = np.random.default_rng(0)
    theta, start, quality = (torch.tensor(rng.normal(size=n)) for _ in range(3))
    pi = torch.softmax(theta, 0)
    prefers = torch.sigmoid(quality[:, None] - quality[None, :])
    ratio = torch.log_softmax(theta, 0) - torch.log_softmax(start, 0)
    # Of the pair (w, l): 2 (h - 1/2β) (e_w - e_l), for the normaliser cancels in h.
    slope = 2 * (ratio[:, None] - ratio[None, :] - 1 / (2 * beta))
    unit = torch.eye(n, dtype=torch.float64)
    each = slope[:, :, None] * (unit[:, None] - unit[None, :])
    weight = pi[:, None] * pi[None, :]
    lost = (1 - prefers)[:, :, None] * each.transpose(0, 1)
    closed = (weight[:, :, None] * (prefers[:, :, None] * each + lost)).sum((0, 1))

    learnt = theta.clone().requires_grad_(True)
    logps, before = torch.log_softmax(learnt, 0), torch.log_softmax(start, 0)
    won, out = (torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n))
    loss = ipo(logps[won], logps[out], before[won], before[out], beta=beta).reshape(n, n)
    exact = (weight * (prefers * loss + (1 - prefers) * loss.T)).sum()  # the draws themselves have no gradient
    (gradient,) = torch.autograd.grad(exact, learnt)
    assert torch.allclose(gradient, closed, atol=1e-12)

    a, b = (rng.choice(n, draws, p=pi.numpy()) for _ in range(2))
    chances = prefers.numpy()[a, b]
    wins = np.array([first_wins(p, "drawn", 7, i) for i, p in enumerate(chances)])
    found = each.numpy()[np.where(wins, a, b), np.where(wins, b, a)]
    error = found.std(0) / np.sqrt(draws)
    assert np.abs(found.mean(0) - closed.numpy()).max() < 4 * error.max()


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_the_sum_form_is_trls_online_loss_on_the_same_answers():
    from trl.experimental.online_dpo import OnlineDPOTrainer

    lm, reference = policy(), policy(seed=1)
    prompts, answers = [[5, 9, 7], [8, 30, 12]], [[[20, 2], [31, 40, 2]], [[22, 23, 24, 2], [50, 2]]]
    longest = max(len(ids) for pair in answers for ids in pair)
    ids = [pair[side] for side in (0, 1) for pair in answers]
    padded = torch.tensor([one + [0] * (longest - len(one)) for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
    asked = torch.tensor(prompts * 2)
    caught: list[torch.Tensor] = []
    stub: Any = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False, missing_eos_penalty=None, loss_type="ipo", torch_empty_cache_steps=None,
            optim="adamw_torch", n_gpu=1, gradient_accumulation_steps=1,
        ),
        _generate=lambda *given: (asked, torch.ones_like(asked), padded, mask, None),
        _calculate_rewards_from_functions=lambda **given: torch.tensor([1.0, 0.0, 0.0, 1.0]),
        processing_class=SimpleNamespace(batch_decode=lambda *a, **k: ["x"] * 4), eos_token_ids=[2], max_length=512,
        ref_model=reference.model, reward_funcs=[None], stats=defaultdict(list), beta=0.1,
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, backward=caught.append),
        state=SimpleNamespace(global_step=1),
    )  # fmt: skip
    stub._forward = lambda *given: OnlineDPOTrainer._forward(stub, *given)
    OnlineDPOTrainer.training_step(stub, lm.model, {"prompt": ["a", "b"]})

    chosen = [answers[0][0], answers[1][1]]
    rejected = [answers[0][1], answers[1][0]]
    rows = Dataset.from_list([
        {"prompt": "p", "chosen": "c", "rejected": "r", "prompt_ids": p, "chosen_ids": c, "rejected_ids": r}
        for p, c, r in zip(prompts, chosen, rejected)
    ])  # fmt: skip
    objective = objective_of(PreferenceOptions(loss="ipo-sum", beta=0.1))
    known = _logps(reference, rows, objective)
    total, _ = passed(lm, rows, objective, reference=known)
    assert total / 2 == pytest.approx(caught[0].item(), rel=1e-5)


def _logps(lm: Any, rows: Dataset, objective: Any) -> torch.Tensor:
    """Of the scored tokens of `rows` in the order of one packed batch."""
    from maypole.models.attention import packed_execution
    from maypole.train.batch import pack
    from maypole.train.reference import logprobs_of, packed_hidden

    batch = pack(store_of(rows, objective, lm), np.arange(len(rows)))
    with torch.no_grad(), packed_execution(lm.model):
        hidden = packed_hidden(lm.model, batch.input_ids, batch.plan).index_select(0, batch.source)
        return logprobs_of(lm.model, hidden, batch)


def sample(first: list[int], second: list[int], p: float = 0.8) -> dict[str, Any]:
    return {
        "prompt": "p", "prompt_ids": [1, 2], "completions": ["a", "b"], "completion_ids": [first, second],
        "probabilities": [[0.5, p], [1 - p, 0.5]], "version": 3, "row": 5,
    }  # fmt: skip


def test_two_fresh_answers_are_a_pair_as_the_judge_says_unless_they_are_alike():
    method = FreshPairs(Winner(), 8, "hard", 0)
    assert method.pair(sample([5], [6]))["chosen_ids"] == [5]  # type: ignore[index]
    assert method.pair(sample([5], [6], 0.4))["chosen_ids"] == [6]  # type: ignore[index]
    assert method.pair(sample([5, 6], [5, 6])) is None
    assert method.pair(sample([5], [6], 0.5)) is None
    assert [draw.n for draw in method.draws] == [2]
    assert (method.draws[0].temperature, method.draws[0].top_p) == (1.0, 1.0)


def test_drawn_labels_come_as_often_as_the_judge_is_sure_and_the_same_again():
    found = [first_wins(0.8, "drawn", 1, 0, i) for i in range(4000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)  # type: ignore[arg-type]
    assert found[:50] == [first_wins(0.8, "drawn", 1, 0, i) for i in range(50)]


def test_best_of_two_is_the_likelihood_of_the_winner():
    rows = Dataset.from_list([
        {"prompt": "p", "chosen": "c", "rejected": "r", "prompt_ids": [5, 9], "chosen_ids": [7, 2], "rejected_ids": [8]}
    ])  # fmt: skip
    lm = policy()
    total, _ = passed(lm, rows, Winner())
    logps = torch.log_softmax(lm.model(torch.tensor([[5, 9, 7, 2]])).logits[0], -1)
    assert total == pytest.approx(-float((logps[1, 7] + logps[2, 2]).detach()), rel=1e-5)


def test_given_pairs_get_the_golden_judges_labels_and_what_teaches_nothing_is_counted():
    def longer(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        assert columns["topic"] == ["t"] * len(prompts)
        return [None if "?" in text else float(len(text)) for text in completions]

    pairs = [("a", "bcd"), ("same", "same"), ("xy", "zw"), ("?", "a"), ("four", "f")]
    rows = Dataset.from_list([{"prompt": "p", "chosen": a, "rejected": b, "topic": "t"} for a, b in pairs])
    found, left_out = labelled(rows, longer, GapConfig(), "hard", seed=0)
    assert [(row["chosen"], row["rejected"]) for row in found] == [("bcd", "a"), ("four", "f")]
    assert left_out == {"alike": 1, "tied": 1, "no opinion": 1}


def test_a_golden_judge_that_answers_nan_is_named_with_its_row():
    def broken(prompts: list, a: list, b: list, **columns: Any) -> list[float | None]:
        return [float("nan") if "x" in text else 1.0 for text in a]

    pairs = [("same", "same"), ("a", "b"), ("x", "y")]
    rows = Dataset.from_list([{"prompt": "p", "chosen": a, "rejected": b} for a, b in pairs])
    with pytest.raises(JudgeError, match="row 3"):
        labelled(rows, broken, GapConfig(both_orders=False), "hard", seed=0)


def test_a_policy_that_is_the_reference_tells_nothing_apart_and_swapped_pairs_tell_the_opposite():
    now, before = np.array([[-1.0, -3.0], [-2.0, -2.5], [-1.0, -1.0]]), np.array([[-2.0, -2.0], [-1.0, -2.0], [0, 0]])
    assert Sign.of(before, before) == Sign(0.5, 1.0)
    found = Sign.of(now, before)
    assert (found.accuracy, found.ties) == (pytest.approx(0.5), pytest.approx(1 / 3))
    swapped = Sign.of(now[:, ::-1], before[:, ::-1])
    assert swapped.accuracy == pytest.approx(1 - found.accuracy)
    assert Sign.of(now[:1], before[:1]) == Sign(1.0, 0.0)


def test_wins_are_antisymmetric_around_a_half_and_equal_answers_tie():
    def longer(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        return [float(len(ids)) for ids in columns["completion_ids"]]

    def sooner(prompts: list, a: list, b: list, **columns: Any) -> list[float | None]:
        return [0.9 if x < y else 0.1 if x > y else 0.5 for x, y in zip(a, b)]

    rows = [{"prompt": "p"}] * 3
    ours = [{"answer": text, "ids": [1] * n} for text, n in (("a", 3), ("b", 1), ("c", 2))]
    theirs = [{"answer": text, "ids": [1] * n} for text, n in (("b", 1), ("c", 2), ("d", 2))]
    for judge, score in ((longer, 2.0), (sooner, None)):
        settings: dict[str, Any] = {"both_orders": True, "on_judge_error": "stop"}
        won, found = Contest(judge, rows, theirs, **settings)(ours)
        lost, _ = Contest(judge, rows, ours, **settings)(theirs)
        assert found == score
        assert (won + lost).tolist() == pytest.approx([1.0] * 3)
        assert Contest(judge, rows, ours, **settings)(ours)[0].tolist() == [0.5] * 3


def test_kl_of_answers_does_not_depend_on_who_stands_beside_them():
    ours, theirs = [[-1.0, -2.0], [-0.5]], [[-1.5, -1.0], [-2.5]]
    found, back = divergence(ours, theirs), divergence(ours[::-1], theirs[::-1])
    assert found.items.tolist() == back.items[::-1].tolist()
    assert found.per_completion == pytest.approx(back.per_completion)


def recorded(folder: Path) -> Path:
    for round in range(3):
        rows = [
            {"prompt": f"{round} {i}", "chosen": "a", "rejected": "b", "prompt_ids": [round, i], "chosen_ids": [5],
             "rejected_ids": [6]}
            for i in range(4 + round)
        ]  # fmt: skip
        (folder / "rounds" / f"{round:03}").mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(folder / "rounds" / f"{round:03}" / "rows.parquet")
    return folder


def test_shuffled_rows_are_the_recorded_ones_dealt_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    run = recorded(tmp_path)
    before = [Recorded(run, 3).rows(round)["prompt_ids"] for round in range(3)]
    after = [Shuffled(run, 3, seed=1).rows(round)["prompt_ids"] for round in range(3)]
    assert [len(rows) for rows in after] == [4, 5, 6]
    assert sorted(chain.from_iterable(after)) == sorted(chain.from_iterable(before))
    order = [ids[0] for rows in after for ids in rows]
    assert order != sorted(order)
    assert after == [Shuffled(run, 3, seed=1).rows(round)["prompt_ids"] for round in range(3)]


def point(cell: str, step: int, kl: float, wins: float) -> dict[str, Any]:
    told = {"arm": cell[0], "beta": 0.1, "rate": 1.0, "size": "", "pair_accuracy": wins / 2}
    return {"cell": cell, "step": step, "kl": kl, "win_rate": wins, **told}


def test_arms_are_compared_where_both_have_been_and_what_is_lost_after_the_peak_is_told():
    ours = [point("a1", 1, 1.1, 0.6), point("a1", 2, 2.1, 0.8), point("a2", 1, 1.2, 0.7), point("a2", 2, 9.0, 0.5)]
    theirs = [point("b", 1, 1.0, 0.65), point("b", 2, 2.5, 0.7), point("b", 3, 4.5, 0.55)]
    assert [one["win_rate"] for one in envelope(ours).values()] == [0.7, 0.8, 0.5]
    found = compared(ours, theirs)
    assert [(one["kl_from"], one["kl_to"]) for one in found["bins"]] == [(1.0, 2**0.5), (2.0, 2**1.5)]
    assert [one["difference"] for one in found["bins"]] == pytest.approx([0.05, 0.1])
    assert (found["mean_difference"], found["above"]) == (pytest.approx(0.075), 2)
    assert found["best_difference"] == pytest.approx(0.1)
    assert (found["pair_accuracy"], found["pair_accuracy_against"]) == pytest.approx((0.325, 0.275))
    line = runs(theirs)[0]
    assert (line["peak_kl"], line["peak_step"], line["fall"]) == (2.5, 2, pytest.approx(0.15))
    apart = compared(ours[:1], theirs[2:])
    assert (apart["bins"], apart["mean_difference"], apart["above"]) == ([], None, 0)


def test_every_experiment_names_its_runs_and_replays_come_last():
    config = GapConfig(experiments=("all",), betas=(0.1, 0.3), rates=(1.0,))
    assert config.experiments == tuple(EXPERIMENTS)
    names = [cell.name for cell in cells(config, ("large",))]
    assert len(names) == len(set(names)) == 2 * 6 + 2 + 4
    assert "large-online-beta-0.3-rate-1" in names
    assert "best-of-2-online-rate-1" in names
    assert {name.split("-")[0] for name in names[-4:]} == {"replay", "shuffled"}
    few = cells(GapConfig(experiments=("gap,loss",), betas=(0.1,), rates=(1.0,)))
    assert [cell.arm for cell in few] == ["online", "best-of-2-online", "offline", "best-of-2-offline"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"experiments": ("gap", "luck")}, "experiments"),
        ({"betas": (0.1, 0.0)}, "numbers above 0"),
        ({"betas": (-0.1,)}, "numbers above 0"),
        ({"betas": (float("nan"),)}, "numbers above 0"),
        ({"betas": ()}, "one or more"),
        ({"rates": (1.0, 1.0)}, "each once"),
        ({"loss": "simpo"}, "loss"),
        ({"steps": 10, "eval_every": 4}, "a divisor of steps, 10"),
        ({"refresh_every": 7}, "a divisor of steps"),
        ({"labels": "soft"}, "labels"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        GapConfig(**settings)
