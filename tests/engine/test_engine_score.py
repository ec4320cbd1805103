import numpy as np
import pytest

from maypole.core.errors import UserError
from maypole.engine import Engine, EngineConfig, ScoreRequest
from tests.engine.engine_fixtures import BOS, hf_greedy, hf_logprobs, lm_of, random_ids
from tests.tiny_models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_log_softmax_of_transformers(family: str):
    lm = lm_of(family)
    context, a, b, c, d = random_ids([90, 1, 7, 30, 12])
    asked = [(context, [a, b, c]), (context + b, [d, a]), (None, [c])]
    requests = [ScoreRequest(prompt, continuations) for prompt, continuations in asked]
    wide = Engine(lm).score(requests)
    narrow = Engine(lm, EngineConfig(max_batch_tokens=1)).score(requests)
    for (prompt, continuations), one, other in zip(asked, wide, narrow):
        for ids, x, y in zip(continuations, one, other):
            expected = hf_logprobs(lm.model, prompt or [BOS], ids)
            assert np.abs(np.subtract(x.logprobs, expected)).max() < 1e-5
            assert np.abs(np.subtract(x.logprobs, y.logprobs)).max() < 1e-5
            assert abs(x.sum - sum(expected)) < 1e-4
            assert x.token_ids == ids


def test_greedy_continuations_are_recognised():
    lm = lm_of()
    prompt = random_ids([12])[0]
    greedy = hf_greedy(lm.model, prompt, 6)
    other = [*greedy[:-1], (greedy[-1] + 1) % 200 + 4]
    scored = Engine(lm).score([ScoreRequest(prompt, [greedy, other, []])])[0]
    assert [s.is_greedy for s in scored] == [True, False, True]
    assert (scored[2].logprobs, scored[2].sum) == ([], 0.0)


def test_text_is_scored_as_prompt_and_continuation_together():
    lm = lm_of()
    engine = Engine(lm)
    ids = lm.tokenizer("hello world")["input_ids"]
    scored = engine.score([ScoreRequest("hello", [" world"]), ScoreRequest(None, ["hello world"])])
    assert scored[0][0].token_ids == ids[6:]
    assert np.allclose(scored[0][0].logprobs, hf_logprobs(lm.model, ids[:6], ids[6:]), atol=1e-5)
    assert scored[1][0].token_ids == ids[1:]
    chat = [{"role": "user", "content": "q"}]
    rendered = lm.tokenizer("[user]q[assistant]yes", add_special_tokens=False)["input_ids"]
    answered = engine.score([ScoreRequest(chat, ["yes"])])[0][0]
    assert np.allclose(answered.logprobs, hf_logprobs(lm.model, rendered[:-3], rendered[-3:]), atol=1e-5)


def test_what_cannot_be_scored_is_an_error():
    lm = lm_of()
    with pytest.raises(UserError, match="do not fit the model's context"):
        Engine(lm).score([ScoreRequest(random_ids([500])[0], random_ids([20]))])
    Engine(lm).score([ScoreRequest(random_ids([500])[0], random_ids([13]))])
