from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from scipy import stats

from maypole.engine.request import Sampling
from maypole.engine.sampling import Draw, adjust, draw, filtered, inverse_cdf, sample_seed, uniform


def _logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def test_draws_follow_the_filtered_distribution():
    sampling = Sampling(temperature=0.7, top_p=0.9)
    logits = _logits(1, 40)
    p = filtered(logits, [sampling])[0]
    n = 20_000
    tokens = inverse_cdf(p.expand(n, -1), [uniform(seed, 5) for seed in range(n)])
    counts = np.bincount(tokens, minlength=40)
    kept = p.numpy() > 0
    assert counts[~kept].sum() == 0
    assert 2 < kept.sum() < 40
    assert stats.chisquare(counts[kept], p.numpy()[kept] * n).pvalue > 1e-3


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(temperature=0.6), [hf.TemperatureLogitsWarper(0.6)]),
        (Sampling(top_k=7), [hf.TopKLogitsWarper(7)]),
        (Sampling(top_p=0.8), [hf.TopPLogitsWarper(0.8)]),
        (Sampling(min_p=0.05), [hf.MinPLogitsWarper(0.05)]),
        (Sampling(typical_p=0.5), [hf.TypicalLogitsWarper(0.5)]),
        (
            Sampling(temperature=1.3, top_k=20, min_p=0.02, top_p=0.7),
            [
                hf.TemperatureLogitsWarper(1.3),
                hf.TopKLogitsWarper(20),
                hf.MinPLogitsWarper(0.02),
                hf.TopPLogitsWarper(0.7),
            ],
        ),
    ],
)
def test_filters_equal_transformers_warpers(sampling: Sampling, warpers: list):
    logits = _logits(16, 50)
    want = logits.double()
    for warper in warpers:
        want = warper(torch.zeros(16, 1, dtype=torch.long), want)
    got = filtered(logits, [sampling] * 16)
    torch.testing.assert_close(got, torch.softmax(want, -1), atol=1e-9, rtol=0)
    mixed = filtered(logits, [sampling, Sampling()] * 8)
    torch.testing.assert_close(mixed[0::2], got[0::2], atol=1e-12, rtol=0)
    torch.testing.assert_close(mixed[1::2], torch.softmax(logits.double(), -1)[1::2], atol=1e-12, rtol=0)


def test_the_repetition_penalty_equals_transformers():
    prompt, generated = [3, 4, 4, 9], [9, 11]
    scores = _logits(1, 30)[0]
    processor: Any = hf.RepetitionPenaltyLogitsProcessor(1.4)
    want = processor(torch.tensor([prompt + generated]), scores[None].clone())[0]
    adjust(scores, Draw(Sampling(repetition_penalty=1.4), 0, prompt, generated))
    torch.testing.assert_close(scores, want, atol=1e-6, rtol=0)


def test_frequency_and_presence_penalties_count_the_completion_only():
    scores = torch.zeros(6)
    settings = Sampling(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={1: 2.0})
    adjust(scores, Draw(settings, 0, [0, 0, 1], [2, 2, 4], forbidden=(5,)))
    assert scores.tolist() == [0.0, 2.0, -1.25, 0.0, -0.75, float("-inf")]


def test_greedy_takes_the_lowest_of_equals_and_top_k_one_is_greedy():
    logits = torch.zeros(2, 9)
    logits[:, [4, 7]] = 1.0
    drawn = draw(logits, [Draw(Sampling(temperature=0.0), 0, (), ()), Draw(Sampling(top_k=1), 5, (), ())])
    assert [d.token for d in drawn] == [4, 4]
    assert abs(drawn[0].logprob - float(torch.log_softmax(logits[0], -1)[4])) < 1e-6


def test_a_draw_depends_on_seed_and_step_only():
    assert uniform(1, 2) == uniform(1, 2)
    assert len({uniform(s, t) for s in range(20) for t in range(20)}) == 400
    assert sample_seed(7, 0) == 7
    assert len({sample_seed(7, i) for i in range(100)}) == 100
    logits = _logits(8, 30)
    rows = [Draw(Sampling(temperature=0.8, seed=i), i, (), [0] * i) for i in range(8)]
    together = [d.token for d in draw(logits, rows)]
    assert together == [draw(logits[i : i + 1], [rows[i]])[0].token for i in range(8)]


def test_the_last_token_with_probability_ends_the_cumulative_distribution():
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    assert inverse_cdf(p, [1.0 - 2**-53]).tolist() == [1]
    assert inverse_cdf(p, [0.0]).tolist() == [0]
    assert inverse_cdf(p, [0.5]).tolist() == [1]
