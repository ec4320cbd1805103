import threading
from collections.abc import Callable

import torch

from maypole.engine import Engine, Request, Sampling, ScoreRequest
from maypole.models.attention import configs, packed_execution
from maypole.models.forward import packed_hidden
from maypole.models.head import head_of, token_logprobs
from maypole.models.packing import documents
from tests.engine.engine_fixtures import hf_greedy, lm_of, random_ids, with_adapters

SAMPLED = Sampling(max_tokens=10, temperature=0.8, n=2, seed=4)


def _training_step(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = model(torch.tensor(random_ids([12], seed=9)), labels=torch.tensor(random_ids([12], seed=9)))
    out.loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_given_module_is_the_same_before_and_after():
    lm = with_adapters(lm_of("gemma2"), "a")
    model = lm.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    implementations = [c._attn_implementation for c in configs(model)]
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    gradients = _training_step(model.train())
    engine = Engine(lm)
    assert model.training
    engine.generate([Request(p, SAMPLED) for p in random_ids([5, 9])])
    engine.score([ScoreRequest(random_ids([4])[0], random_ids([3]))])
    engine.embed(["abc"], layer=1)
    assert [c._attn_implementation for c in configs(model)] == implementations
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    for name, gradient in _training_step(model).items():
        assert torch.equal(gradient, gradients[name]), name


def test_the_engine_shares_every_parameter_and_its_own_hooks_only():
    lm = with_adapters(lm_of(), "a")
    seen: list[int] = []
    lm.transformer.register_forward_hook(lambda *a: seen.append(1))
    engine = Engine(lm)
    own = {id(p) for p in engine._runner.module.parameters()}
    assert own <= {id(p) for p in lm.transformer.parameters()}
    assert not any("lora" in n for n, _ in engine._runner.module.named_parameters())
    engine.generate([Request("a", Sampling(max_tokens=1))])
    assert seen == []


def _train(model, steps: int) -> list[float]:
    """Packed LoRA steps by hand: documents, head, log-probs, SGD."""
    texts = [torch.tensor(t) for t in random_ids([9, 17, 5], seed=2)]
    ids, plan = torch.cat(texts), documents([9, 17, 5])
    trained = [p for n, p in model.named_parameters() if "lora_" in n]
    losses: list[float] = []
    with packed_execution(model):
        for _ in range(steps):
            hidden = packed_hidden(model, ids[:-1], documents([9, 17, 4]))
            head = head_of(model)
            logps = token_logprobs(hidden, head.weight, ids[1:], bias=head.bias, softcap=head.softcap)
            loss = -logps.mean()
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients):
                    parameter -= 0.05 * gradient
            losses.append(float(loss))
    assert plan.tokens == 31
    return losses


def _gemma():
    lm = with_adapters(lm_of("gemma2"), "a")
    for name, parameter in lm.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return lm


def _in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list]:
    out: list = []
    thread = threading.Thread(target=lambda: out.append(function()))
    thread.start()
    return thread, out


def test_training_and_an_engine_run_side_by_side_as_if_alone():
    prompts = random_ids([7, 30, 12, 3])
    requests = [Request(p, SAMPLED, adapter="") for p in prompts]
    alone_losses = _train(_gemma().model, 20)
    alone = [o.token_ids for o in Engine(_gemma()).generate(requests)]
    lm = _gemma()
    engine = Engine(lm)
    training, losses = _in_thread(lambda: _train(lm.model, 20))
    rounds = 0
    while training.is_alive() or rounds == 0:
        assert [o.token_ids for o in engine.generate(requests)] == alone
        fresh = Engine(lm)  # made while the module is in packed execution
        assert [o.token_ids for o in fresh.generate(requests)] == alone
        rounds += 1
    training.join()
    assert losses == [alone_losses]
    assert losses[0][-1] < losses[0][0]


def test_calls_from_several_threads_share_the_queue_and_keep_their_answers():
    lm = lm_of()
    engine = Engine(lm)
    prompts = random_ids([6, 20, 3, 14, 9, 11])
    greedy = Sampling(max_tokens=10, temperature=0.0)
    threads = [_in_thread(lambda p=p: engine.generate([Request(p, greedy)])[0].token_ids) for p in prompts]
    for thread, _ in threads:
        thread.join()
    for prompt, (_, out) in zip(prompts, threads):
        assert out[0] == hf_greedy(lm.model, prompt, 10)
    assert engine.stats()["running"] == 0
