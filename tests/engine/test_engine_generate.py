import numpy as np
import pytest
import torch

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.engine import Engine, EngineConfig, Request, Sampling
from tests.engine.engine_fixtures import EOS, hf_greedy, hf_logprobs, lm_of, random_ids
from tests.tiny_models import FAMILIES, MIXTURES

GREEDY = Sampling(max_tokens=16, temperature=0.0)


def _prompts() -> list[list[int]]:
    prefix, *rest = random_ids([40, 1, 5, 9, 30, 70])
    return [*rest, *(prefix + p for p in rest[:3]), prefix, prefix]


def _agree(model, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Equal, or at the first difference the model's own logits of the two tokens are a near tie."""
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    if first is None:
        return len(ours) == len(theirs)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ours[:first]])).logits[0, -1]
    a, b = logits[ours[first]], logits[theirs[first]]
    return bool((a - b).abs() <= 1e-4 * logits.abs().max())


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_greedy_tokens_and_logprobs_equal_transformers_alone_and_in_a_batch(family: str):
    lm = lm_of(family)
    prompts = _prompts()
    expected = [hf_greedy(lm.model, p, 16) for p in prompts]
    engine = Engine(lm, EngineConfig(max_seqs=6, max_batch_tokens=200))
    batched = engine.generate([Request(p, GREEDY) for p in prompts])
    alone = [engine.generate([Request(p, GREEDY)])[0] for p in prompts[:3]]
    different = 0
    for prompt, theirs, ours in [*zip(prompts, expected, batched), *zip(prompts, expected, alone)]:
        assert _agree(lm.model, prompt, ours.token_ids, theirs)
        different += ours.token_ids != theirs
        error = np.subtract(ours.logprobs, hf_logprobs(lm.model, prompt, ours.token_ids))
        assert np.abs(error).max() < 1e-5
    assert different == 0
    assert sum(o.usage.cached_tokens for o in batched) >= 40
    assert engine.stats()["kv_tokens"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_grouped_query_ratios_and_long_prompts_equal_transformers(family: str):
    for heads in (1, 4):
        changes = {} if family == "gpt2" else {"num_key_value_heads": heads}
        lm = lm_of(family, seed=3, **changes)
        prompt = random_ids([300], seed=4)[0]
        output = Engine(lm).generate([Request(prompt, GREEDY)])[0]
        assert _agree(lm.model, prompt, output.token_ids, hf_greedy(lm.model, prompt, 16))


def test_a_bf16_model_keeps_its_cache_in_fp32():
    lm = lm_of("llama")
    lm.model.to(torch.bfloat16)
    engine = Engine(lm)
    output = engine.generate([Request(random_ids([9])[0], GREEDY)])[0]
    error = np.subtract(output.logprobs, hf_logprobs(lm.model, random_ids([9])[0], output.token_ids))
    assert np.abs(error).max() < 0.1
    assert engine._generator().memory.dtype is torch.float32


def test_samples_do_not_depend_on_what_runs_beside_them():
    engine = Engine(lm_of("qwen3"))
    prompts = random_ids([3, 12, 7, 40, 5, 5, 21, 8])
    sampling = [Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=i) for i in range(len(prompts))]
    together = engine.generate([Request(p, s) for p, s in zip(prompts, sampling)])
    for prompt, s, output in zip(prompts, sampling, together):
        assert engine.generate([Request(prompt, s)])[0].token_ids == output.token_ids
    small = Engine(engine.lm, EngineConfig(max_seqs=2, max_batch_tokens=16))
    again = small.generate([Request(p, s) for p, s in zip(prompts, sampling)])
    assert [o.token_ids for o in again] == [o.token_ids for o in together]


def test_n_samples_share_the_prompt_and_differ():
    engine = Engine(lm_of())
    prompt = random_ids([30])[0]
    outputs = engine.generate([Request(prompt, Sampling(n=4, max_tokens=8, seed=3)), Request(prompt, GREEDY)])
    assert [o.index for o in outputs] == [0, 1, 2, 3, 0]
    assert len({tuple(o.token_ids) for o in outputs[:4]}) == 4
    assert sum(o.usage.cached_tokens for o in outputs) == 4 * 29


def test_the_cache_stays_within_its_bytes_and_too_long_a_prompt_is_an_error():
    lm = lm_of()
    per_token = Engine(lm)._generator().memory.bytes_per_token
    engine = Engine(lm, EngineConfig(kv_bytes=per_token * 100))
    outputs = engine.generate([Request(p, GREEDY) for p in random_ids([30] * 5)])
    assert all(o.finish_reason == "stop" or len(o.token_ids) == 16 for o in outputs)
    assert engine.stats()["kv_bytes"] <= per_token * 100
    with pytest.raises(UserError, match="need 115 tokens of cache"):
        engine.generate([Request(random_ids([100])[0], GREEDY)])
    with pytest.raises(UserError, match="do not fit the model's context of 512"):
        Engine(lm).generate([Request(random_ids([512])[0], GREEDY)])


def test_a_completion_ends_where_the_context_does():
    lm = lm_of("gpt2", n_positions=24)
    output = Engine(lm).generate(
        [Request(random_ids([20])[0], Sampling(max_tokens=50, temperature=0, ignore_eos=True))]
    )
    assert (len(output[0].token_ids), output[0].finish_reason) == (4, "length")


def test_end_of_sequence_stops_unless_ignored_or_too_early():
    engine = Engine(lm_of())
    prompt = random_ids([6])[0]
    bias = {EOS: 1e4}
    ended = engine.generate([Request(prompt, Sampling(max_tokens=5, logit_bias=bias))])[0]
    assert (ended.token_ids, ended.finish_reason, ended.text) == ([EOS], "stop", "")
    ignored = engine.generate([Request(prompt, Sampling(max_tokens=5, logit_bias=bias, ignore_eos=True))])[0]
    assert (ignored.token_ids, ignored.finish_reason) == ([EOS] * 5, "length")
    later = engine.generate([Request(prompt, Sampling(max_tokens=5, logit_bias=bias, min_tokens=3))])[0]
    assert (len(later.token_ids), later.token_ids[-1], EOS in later.token_ids[:-1]) == (4, EOS, False)
    by_id = engine.generate([Request(prompt, Sampling(max_tokens=5, logit_bias={77: 1e4}, stop_token_ids=[77]))])[0]
    assert (by_id.token_ids, by_id.finish_reason, by_id.stop_reason, by_id.text) == ([77], "stop", 77, "")


def test_a_stop_string_over_several_tokens_is_not_part_of_the_text():
    engine = Engine(lm_of())
    sampling = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
    whole = engine.generate([Request("ab", Sampling(**sampling))])[0]
    stop = whole.text[7:10]
    cut = engine.generate([Request("ab", Sampling(**sampling, stop=["never", stop]))])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_the_most_likely_tokens_stand_beside_the_sampled_one():
    engine = Engine(lm_of())
    output = engine.generate([Request("hello", Sampling(max_tokens=4, temperature=0, logprobs=3))])[0]
    assert output.top_logprobs is not None
    for token, logprob, top in zip(output.token_ids, output.logprobs, output.top_logprobs):
        assert len(top) == 3
        assert next(iter(top)) == token
        assert abs(top[token] - logprob) < 1e-6


def test_text_messages_and_ids_give_the_same_completion():
    engine = Engine(lm_of())
    tokenizer = engine.tokenizer
    rendered = "[user]hi[assistant]"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    chat = [{"role": "user", "content": "hi"}]
    requests = [Request(ids, GREEDY), Request(chat, GREEDY), Request(chat, GREEDY, chat_template_kwargs={"x": 1})]
    outputs = engine.generate(requests)
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids
    text = engine.generate([Request(rendered, GREEDY), Request([1, *ids], GREEDY)])
    assert text[0].token_ids == text[1].token_ids


@pytest.mark.parametrize(
    ("sampling", "names"),
    [
        ({"prompt_logprobs": True}, "engine.score"),
        ({"logprobs_mode": "processed"}, "raw"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_before_anything_runs(sampling: dict, names: str):
    engine = Engine(lm_of())
    with pytest.raises(UnsupportedCapability, match=names):
        engine.generate([Request("a"), Request("b", Sampling(**sampling))])
    assert engine.stats()["waiting"] == 0


def test_wrong_requests_are_named():
    engine = Engine(lm_of())
    with pytest.raises(UserError, match=r"request 1: there is no token 9999"):
        engine.generate([Request("a"), Request([9999])])
    with pytest.raises(UserError, match="no adapter 'x'"):
        engine.generate([Request("a", adapter="x")])
    with pytest.raises(UserError, match="--top-p"):
        Sampling(top_p=0.0)
    with pytest.raises(UserError, match="need messages"):
        engine.generate([Request("a", tools=[{}])])


def test_higher_priority_starts_first():
    engine = Engine(lm_of(), EngineConfig(max_seqs=1))
    order: list[int] = []
    sequences = engine._sequences(
        [Request("a", Sampling(max_tokens=2), priority=p) for p in (0, 5, 1)],
        lambda s, chunk: order.append(s.request.priority) if chunk.output else None,
    )
    engine._generator().submit(sequences)
    while engine._generator().busy:
        engine._step()
    assert order == [5, 1, 0]


def test_no_tokens_asked_gives_an_empty_completion():
    output = Engine(lm_of()).generate([Request("abc", Sampling(max_tokens=0))])[0]
    assert (output.token_ids, output.text, output.finish_reason) == ([], "", "length")
