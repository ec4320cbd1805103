"""One model trains packed while another answers in a second thread: each as if it were alone."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from maypole.models import documents, head_of, packed_execution, packed_hidden, weighted_logprobs
from maypole.models.attention import configs, use_packed
from maypole.models.block_views import base_model
from maypole.models.plan import attention_plan
from tests.tiny_models import VOCABULARY, model_of

STEPS = 20
LENGTHS = [7, 19, 3]


def _tokens(seed: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))


def _train(step: Callable[[], Any] = lambda: None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of 20 packed steps of Gemma 2 and the weights after them."""
    torch.set_num_threads(1)
    model = model_of("gemma2", seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan, losses = documents(LENGTHS), []
    model.train()
    with packed_execution(model):
        for number in range(STEPS):
            step()
            ids = _tokens(number)
            head = head_of(model)
            hidden = packed_hidden(model, ids, plan)[:-1]
            weights = (plan.positions[1:] > 0).float()
            logps, _ = weighted_logprobs(hidden, head.weight, ids[1:], weights, softcap=head.softcap)
            loss = -logps / weights.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses, {k: v.clone() for k, v in model.state_dict().items()}


def _private_copy(model: nn.Module) -> nn.Module:
    """The same Parameters under modules and a config of their own, which an answering thread may switch as it likes."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, shared)
    for module in own.modules():
        vars(module).pop("forward", None)
    for config in configs(own):
        use_packed(config)
    return own


def _answer(model: nn.Module, step: Callable[[], Any] = lambda: None) -> list[torch.Tensor]:
    """Hidden states of 20 batches under plans of another shape than the trainer's."""
    torch.set_num_threads(1)
    own, answers = _private_copy(model), []
    with torch.no_grad():
        for number in range(STEPS):
            step()
            lengths = [1 + number, 29 - number - 1]
            plan = documents(lengths)
            with attention_plan(plan):
                out = base_model(own)(
                    input_ids=_tokens(100 + number)[None], position_ids=plan.positions[None], use_cache=False
                )
            answers.append(out.last_hidden_state[0].clone())
    return answers


def test_gemma2_trains_packed_while_another_thread_answers_each_as_if_alone():
    losses, weights = _train()
    llama = model_of("llama", seed=2)
    answers = _answer(llama)
    together = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as threads:
        training = threads.submit(_train, together.wait)
        answering = threads.submit(_answer, llama, together.wait)
        both_losses, both_weights = training.result()
        both_answers = answering.result()
    assert both_losses == losses
    assert losses[-1] != losses[0]
    assert all(torch.equal(both_weights[name], weight) for name, weight in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(both_answers, answers))


def test_one_model_s_weights_answer_from_a_copy_while_the_module_itself_is_in_packed_execution():
    model = model_of("gemma2", seed=3)
    alone = _answer(model)
    with packed_execution(model), torch.no_grad():
        before = [config._attn_implementation for config in configs(model)]
        with ThreadPoolExecutor(1) as thread:
            beside = thread.submit(_answer, model).result()
        hidden = packed_hidden(model, _tokens(0), documents(LENGTHS))
        assert [config._attn_implementation for config in configs(model)] == before
    assert all(torch.equal(a, b) for a, b in zip(beside, alone))
    assert hidden.shape == (sum(LENGTHS), 32)
    assert all(config._attn_implementation != "maypole" for config in configs(model))
