import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.engine import NO_ADAPTER, Engine, EngineConfig, Request, Sampling, ScoreRequest
from maypole.models.saving import save
from tests.engine.engine_fixtures import hf_greedy, hf_logprobs, lm_of, random_ids, with_adapters

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)


def _alone(lm, adapter: str | None, prompt: list[int]) -> list[int]:
    with lm.with_adapter(adapter).active() as model:
        return _greedy(model, prompt)


@torch.no_grad()
def _greedy(model, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox", "gemma2"])
def test_adapters_in_one_batch_equal_peft_alone(family: str):
    lm = with_adapters(lm_of(family), "a", "b")
    engine = Engine(lm)
    prompts = random_ids([20, 5, 20, 9, 3, 14])
    names = ["a", "b", NO_ADAPTER, "a", None, "b"]
    outputs = engine.generate([Request(p, GREEDY, adapter=n) for p, n in zip(prompts, names)])
    views = ["a", "b", None, "a", "a", "b"]
    for prompt, view, output in zip(prompts, views, outputs):
        assert output.token_ids == _alone(lm, view, prompt)
    scored = engine.score([ScoreRequest(prompts[0], [prompts[1]], adapter=n) for n in ("a", "b", NO_ADAPTER)])
    for view, (found,) in zip(("a", "b", None), scored):
        with lm.with_adapter(view).active() as model:
            expected = hf_logprobs(model, prompts[0], prompts[1])
        assert np.abs(np.subtract(found.logprobs, expected)).max() < 1e-5


def test_a_prompt_is_not_shared_between_adapters():
    engine = Engine(with_adapters(lm_of(), "a", "b"))
    prompt = random_ids([30])[0]
    apart = engine.generate([Request(prompt, GREEDY, adapter=n) for n in ("a", "b")])
    assert [o.usage.cached_tokens for o in apart] == [0, 0]
    salted = engine.generate([Request(prompt, GREEDY, adapter="a", cache_salt=s) for s in ("x", "y", "x")])
    assert sorted(o.usage.cached_tokens for o in salted) == [0, 0, 29]


def test_adapters_come_from_directories_and_models(tmp_path: Path):
    lm = with_adapters(lm_of(), "default")
    save(lm, tmp_path / "adapter")
    engine = Engine(lm.with_adapter(None))
    assert engine.update(tmp_path / "adapter", "disk") == 1
    assert engine.update(lm, "live") == 2
    state = {k.replace(".default.", "."): v for k, v in lm.model.state_dict().items() if "lora_" in k}
    assert engine.update({k: v * 0 for k, v in state.items()}, "live") == 3
    prompt = random_ids([10])[0]
    disk, live, base = engine.generate([Request(prompt, GREEDY, adapter=n) for n in ("disk", "live", NO_ADAPTER)])
    assert disk.token_ids == _alone(lm, "default", prompt)
    assert live.token_ids == base.token_ids == _alone(lm, None, prompt)
    assert [disk.version, live.version, base.version] == [1, 3, 0]
    with pytest.raises(UserError, match="cannot make the new adapter"):
        engine.update(state, "new")


def test_an_adapter_that_cannot_share_a_batch_is_refused():
    import peft

    lm = lm_of()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    lm.model = peft.get_peft_model(lm.model, config)
    with pytest.raises(UnsupportedCapability, match="merge it"):
        Engine(lm)


@pytest.mark.parametrize("after", [1, 5, 9])
def test_an_update_leaves_other_adapters_alone_and_every_output_has_one_version(after: int):
    lm = with_adapters(lm_of(), "a", "b")
    new = {k.replace(".a.", "."): -v.clone() for k, v in lm.model.state_dict().items() if ".lora_" in k and ".a." in k}
    prompts = random_ids([4 + i % 9 for i in range(32)])
    names = [("a", "b", NO_ADAPTER)[i % 3] for i in range(32)]
    requests = [Request(p, GREEDY, adapter=n) for p, n in zip(prompts, names)]
    config = EngineConfig(max_seqs=12)
    old_run = Engine(lm, config).generate(requests)
    changed = Engine(lm, config)
    changed.update(new, "a")
    new_run = changed.generate(requests)
    engine = Engine(lm, config)
    sequences = engine._sequences(requests)
    engine._generator().submit(sequences)
    for step in range(200):
        if step == after:
            assert engine.update(new, "a") == 1
        engine._step()
    versions = set()
    for sequence, name, old, fresh in zip(sequences, names, old_run, new_run):
        assert sequence.output is not None
        if name != "a":
            assert (sequence.output.token_ids, sequence.output.version) == (old.token_ids, 0)
            continue
        versions.add(sequence.output.version)
        assert sequence.output.token_ids == (fresh if sequence.output.version else old).token_ids
    assert versions == {0, 1}


def test_an_adapter_that_was_replaced_is_let_go_of():
    lm = with_adapters(lm_of(), "a", "b")
    engine = Engine(lm)
    engine.generate([Request([5, 6, 7], GREEDY, adapter=n) for n in ("a", "b")])  # both are stacked now
    adapter: Any = engine.adapters.loaded("a")
    layer = next(iter(adapter.layers.values()))
    old = weakref.ref(layer.down)
    del adapter, layer
    engine.update(lm, "a")
    gc.collect()
    assert old() is None


def test_an_aborting_update_ends_running_requests_of_its_target():
    lm = with_adapters(lm_of(), "a", "b")
    engine = Engine(lm)
    sequences = engine._sequences([Request([5, 6, 7], GREEDY, adapter=n) for n in ("a", "b")])
    engine._generator().submit(sequences)
    for _ in range(4):
        engine._step()
    engine.update(lm, "a", mode="abort")
    while engine._generator().busy:
        engine._step()
    outputs = [s.output for s in sequences]
    assert [o.finish_reason for o in outputs if o] == ["update", "length"]
    assert [len(o.token_ids) for o in outputs if o] == [4, 12]


def test_a_moved_base_is_refused_until_the_engine_is_updated():
    lm = lm_of()
    engine = Engine(lm)
    prompt = random_ids([10])[0]
    before = engine.generate([Request(prompt, GREEDY)])[0]
    with torch.no_grad():
        lm.model.model.embed_tokens.weight.mul_(-1.0)
    lm.base_changed()
    for call in (
        lambda: engine.generate([Request(prompt, GREEDY)]),
        lambda: engine.score([ScoreRequest(prompt, [prompt])]),
        lambda: engine.embed([prompt]),
    ):
        with pytest.raises(UserError, match=r"engine\.update"):
            call()
    assert engine.update(lm) == 1
    after = engine.generate([Request(prompt, GREEDY)])[0]
    assert after.token_ids == _greedy(lm.model, prompt) != before.token_ids
    assert after.version == 1


def test_a_base_from_a_state_dict_leaves_the_given_module_alone():
    lm, other = lm_of(seed=0), lm_of(seed=1)
    kept = {k: v.clone() for k, v in lm.model.state_dict().items()}
    engine = Engine(lm)
    prompt = random_ids([10])[0]
    engine.update(other.model.state_dict())
    assert engine.generate([Request(prompt, GREEDY)])[0].token_ids == _greedy(other.model, prompt)
    assert all(torch.equal(kept[k], v) for k, v in lm.model.state_dict().items())
    engine.update(other.model)
    assert engine.generate([Request(prompt, GREEDY)])[0].token_ids == _greedy(other.model, prompt)
    with pytest.raises(UserError, match="which the model lacks"):
        engine.update({"nothing.weight": torch.zeros(1)})


def test_waiting_requests_run_on_the_base_that_came_while_they_waited():
    lm, other = lm_of(seed=0), lm_of(seed=1)
    engine = Engine(lm, EngineConfig(max_seqs=1))
    prompts = random_ids([6, 7])
    sequences = engine._sequences([Request(p, GREEDY) for p in prompts])
    engine._generator().submit(sequences)
    engine._step()
    thread = threading.Thread(target=engine.update, args=(other,))
    thread.start()
    thread.join()
    while engine._generator().busy:
        engine._step()
    outputs = [s.output for s in sequences if s.output]
    assert [o.version for o in outputs] == [0, 1]
    assert [o.token_ids for o in outputs] == [_greedy(lm.model, prompts[0]), _greedy(other.model, prompts[1])]


def test_greedy_with_no_adapter_equals_transformers_generate():
    lm = with_adapters(lm_of(), "a")
    prompt = random_ids([8])[0]
    ours = Engine(lm.with_adapter(None)).generate([Request(prompt, Sampling(max_tokens=12, temperature=0.0))])[0]
    with lm.with_adapter(None).active() as model:
        assert ours.token_ids == hf_greedy(model, prompt, 12)
