"""Pairs as one tree, any loss by its name, and metrics under trl's names."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from maypole.align.preference import Pairs, objective_of
from maypole.align.preference_options import LOSSES, WITHOUT_REFERENCE, PreferenceOptions
from maypole.core.errors import ConfigError
from maypole.core.progress import set_quiet
from maypole.data.chat import Dropped, encode_completion
from maypole.train import Segment, TokenBatch, losses
from tests.engine.engine_fixtures import byte_tokenizer
from tests.tiny_models import model_of
from tests.train.train_fixtures import lm_with, store_of

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ON_PAIRS = [loss for loss in LOSSES if loss != "kto"]


@pytest.fixture
def tokenizer() -> Any:
    made = byte_tokenizer()
    made.chat_template = TEMPLATE
    return made


def pair(prompt: Any, chosen: Any, rejected: Any, tokenizer: Any) -> Segment | Dropped:
    return Pairs().segments({"prompt": prompt, "chosen": chosen, "rejected": rejected}, tokenizer)


def test_a_pair_is_its_prompt_once_and_two_answers_that_end_once(tokenizer):
    tree = pair("ask ", "yes", "no", tokenizer)
    assert isinstance(tree, Segment)
    assert [child.name for child in tree.children] == ["chosen", "rejected"]
    for answer, child in zip(("yes", "no"), tree.children):
        whole = encode_completion("ask ", answer, tokenizer)
        assert not isinstance(whole, Dropped)
        assert tree.ids + child.ids == whole.ids
        assert tree.weights + child.weights == whole.weights
        assert child.ids.count(tokenizer.eos_token_id) == 1
        assert child.ids[-1] == tokenizer.eos_token_id
        assert set(child.weights) == {1.0}
    assert not any(tree.weights)


def test_messages_are_rendered_by_the_template_and_share_all_that_comes_before_the_answer(tokenizer):
    tree = pair([{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "you"}], "me", tokenizer)
    assert isinstance(tree, Segment)
    assert tokenizer.decode(tree.ids) == "[user]hi<|end|>[assistant]"
    assert [tokenizer.decode(child.ids) for child in tree.children] == ["you<|end|>", "me<|end|>"]


def test_without_a_prompt_nothing_is_shared_and_the_first_tokens_are_not_learnt(tokenizer):
    tree = pair("", "abc", "xyz", tokenizer)
    assert isinstance(tree, Segment)
    bos = [] if tokenizer.bos_token_id is None else tree.ids
    assert tree.ids == bos
    assert all(any(child.weights) for child in tree.children)


def test_pairs_that_teach_nothing_are_dropped_by_reason(tokenizer):
    rows = Dataset.from_list(
        [
            {"prompt": "ask", "chosen": "same", "rejected": "same"},
            {"prompt": "ask", "chosen": "", "rejected": "no"},
            {"prompt": "ask", "chosen": "alike until late", "rejected": "alike until soon"},
            {"prompt": "a prompt that is as long as all there may be", "chosen": "yes", "rejected": "no"},
            {"prompt": "ask", "chosen": "yes", "rejected": "no"},
        ]
    )
    store = store_of(rows, Pairs(), lm_with(model_of("llama"), tokenizer), max_length=14)
    assert store.dropped == {
        "chosen and rejected are alike": 1,
        "empty completion": 1,
        "answers are alike once cut": 1,
        "prompt fills max_length": 1,
    }
    assert store.row_index.tolist() == [4]


def test_an_answer_that_is_cut_has_no_end_token(tokenizer):
    rows = Dataset.from_list([{"prompt": "ask", "chosen": "a long answer that goes on", "rejected": "no"}])
    store = store_of(rows, Pairs(), lm_with(model_of("llama"), tokenizer), max_length=12)
    segments = np.split(np.asarray(store.ids), store.segment_start[1:-1])
    assert [int(s[-1]) == tokenizer.eos_token_id for s in segments] == [False, False, True]


def batch_of(draw: torch.Generator, pairs: int = 3) -> TokenBatch:
    """Pairs with prompts of no scored tokens and answers of one to four."""
    names, segment, row = [], [], []
    for r in range(pairs):
        for name, count in (("prompt", 0), ("chosen", 1 + r), ("rejected", 2 + r % 2)):
            segment += [len(names)] * count
            names.append(name)
            row.append(r)
    logps, reference = (-torch.rand(len(segment), generator=draw) for _ in range(2))
    return TokenBatch(
        logps.requires_grad_(),
        torch.ones(len(segment)),
        torch.tensor(segment),
        names,
        torch.tensor(row),
        pairs,
        reference,
    )


@pytest.mark.parametrize("name", ON_PAIRS)
def test_every_loss_is_the_sum_over_pairs_of_its_function(name: str):
    batch = batch_of(torch.Generator().manual_seed(0))
    options = PreferenceOptions(loss=name, beta=0.3)
    objective = objective_of(options)
    chosen, rejected = batch.sums("chosen"), batch.sums("rejected")
    reference = (batch.sums("chosen", reference=True), batch.sums("rejected", reference=True))
    counts = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 2.0])
    function: Callable[..., torch.Tensor] = getattr(losses, {"cdpo": "dpo", "ipo-sum": "ipo"}.get(name, name))
    given = () if name in WITHOUT_REFERENCE else reference
    lengths = counts[: {"ipo": 2, "simpo": 2, "orpo": 2, "rpo": 1}.get(name, 0)]
    expected = function(chosen, rejected, *given, *lengths, **options.parameters).sum()
    loss = objective(dataclasses.replace(batch, reference=None) if name in WITHOUT_REFERENCE else batch)
    assert loss.sum.item() == pytest.approx(expected.item())
    assert objective.needs == (frozenset() if name in WITHOUT_REFERENCE else {"reference"})
    rewards = [0.3 * ((a - r) if given else a / n) for a, r, n in zip((chosen, rejected), reference, counts)]
    assert float(loss.metrics["rewards/chosen"]) == pytest.approx(rewards[0].sum().item())
    assert float(loss.metrics["rewards/accuracies"]) == int((rewards[0] > rewards[1]).sum())
    assert float(loss.metrics["rewards/margins"]) == pytest.approx((rewards[0] - rewards[1]).sum().item())
    logps = rejected if given else rejected / counts[1]
    assert float(loss.metrics["logps/rejected"]) == pytest.approx(logps.sum().item())


def test_a_loss_of_the_other_kind_is_refused():
    with pytest.raises(ValueError, match=r"Pairs has the losses dpo, .*, not simpo"):
        Pairs(PreferenceOptions(loss="simpo"))


def test_parameters_are_the_losss_own_and_the_defaults_its_papers():
    assert PreferenceOptions().parameters == {"beta": 0.1, "label_smoothing": 0.0}
    assert PreferenceOptions(loss="cdpo").parameters == {"beta": 0.1, "label_smoothing": 0.1}
    assert PreferenceOptions(loss="simpo", gamma=0.5).parameters == {"beta": 2.0, "gamma": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "dppo"}, "loss"),
        ({"gamma": 1.0}, r"gamma.*\n.*nothing with --loss dpo; it belongs to simpo"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "it belongs to dpo, cdpo, robust"),
        ({"label_smoothing": 0.5}, "0 up to, not including, 0.5"),
        ({"beta": 0.0}, "above 0"),
        ({"loss": "kto", "desirable_weight": -1.0}, "0 or more"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_would_be_right(given: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        PreferenceOptions(**given)


@pytest.fixture(autouse=True)
def _quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)
