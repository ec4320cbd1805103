"""KTO: every row carries another row's answer, and the whole step has one reference point."""

import math

import pytest
import torch
from datasets import Dataset

from maypole.align.preference_options import PreferenceOptions
from maypole.align.unpaired import Unpaired, with_other_answers
from maypole.core.errors import DataError
from maypole.train import fit, losses
from tests.engine.engine_fixtures import byte_tokenizer, lm_of
from tests.train.train_fixtures import config, farthest, lines_of, weights_of

ROWS = Dataset.from_list(
    [{"prompt": f"q{i} ", "completion": "abcdefgh"[: 1 + i % 7], "label": i % 3 > 0} for i in range(12)]
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


def test_every_answer_is_given_to_one_other_row_and_equal_rows_are_the_same_dataset():
    made = with_other_answers(ROWS)
    assert sorted(made["kl_completion"]) == sorted(ROWS["completion"])
    assert made.column_names == [*ROWS.column_names, "kl_completion"]
    assert made._fingerprint == with_other_answers(ROWS)._fingerprint != ROWS._fingerprint


def summed(model, prompt: str, completion: str) -> torch.Tensor:
    """log p of a completion with its end, by the model alone."""
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id]])
    start = len(tokenizer(prompt)["input_ids"])
    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[start - 1 :].sum()


@torch.no_grad()
def test_a_steps_loss_is_ktos_with_the_reference_point_of_the_whole_step(tmp_path):
    """In batches of one row or all together: what is computed together does not change what is learnt."""
    rows, options = with_other_answers(ROWS), PreferenceOptions(loss="kto", beta=0.5, undesirable_weight=0.7)
    policy, frozen = lm_of("llama", seed=1).model, lm_of("llama").model
    sums = [
        [torch.stack([summed(model, row["prompt"], row[name]) for row in rows]) for model in (policy, frozen)]
        for name in ("completion", "kl_completion")
    ]
    (of_policy, of_reference), (others, ref_others) = sums
    kl = max(float((others - ref_others).mean()), 0.0)
    good = torch.tensor(rows["label"])
    expected = losses.kto(of_policy, of_reference, good, kl, **options.parameters)
    assert kl > 0
    runs = []
    for name, budget in (("together", 4096), ("apart", 1)):
        lm, reference = lm_of("llama", seed=1), lm_of("llama")
        wanted = config(examples_per_step=12, max_steps=3, tokens_per_batch=budget, learning_rate=1e-3)
        with torch.enable_grad():
            fit(lm, rows, Unpaired(options), wanted, out=tmp_path / name, reference=reference, eval_rows=rows)
        first = lines_of(tmp_path / name)[0]
        assert first["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
        assert first["kl"] == pytest.approx(kl, rel=1e-4)
        rewards = 0.5 * (of_policy - of_reference)
        assert first["rewards/chosen"] == pytest.approx(float(rewards[good].mean()), rel=1e-4)
        assert first["rewards/rejected"] == pytest.approx(float(rewards[~good].mean()), rel=1e-4)
        assert first["logps/rejected"] == pytest.approx(float(of_policy[~good].mean()), rel=1e-4)
        runs.append((weights_of(lm), lines_of(tmp_path / name)[-1]["eval_loss"]))
    assert farthest(runs[0][0], runs[1][0]) < 1e-5
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)


def test_a_step_of_good_answers_alone_has_no_mean_over_bad_ones(tmp_path):
    lm = lm_of("llama")
    rows = with_other_answers(ROWS.map(lambda row: {"label": True}))
    fit(lm, rows, Unpaired(), config(max_steps=1), out=tmp_path / "a", reference="initial")
    line = lines_of(tmp_path / "a")[0]
    assert line["loss"] == pytest.approx(0.5, rel=1e-5)
    assert line["kl"] == pytest.approx(0.0, abs=1e-6)
    assert "rewards/chosen" in line
    assert "rewards/rejected" not in line
    assert math.isfinite(line["grad_norm"])


def test_rows_without_another_answer_are_refused(tmp_path):
    lm = lm_of("llama")
    with pytest.raises(DataError, match="kl_completion"):
        fit(lm, ROWS, Unpaired(), config(max_steps=1), out=tmp_path / "a", reference="initial")
