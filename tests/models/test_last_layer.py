from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from maypole.models.attention import packed_execution
from maypole.models.forward import packed_hidden, self_test
from maypole.models.last_layer import PROVEN
from maypole.models.packing import PackedPlan, pack_rows
from tests.tiny_models import FAMILIES, VOCABULARY, model_of

SIZES, ABOVE = [40, 9, 3, 30, 12, 1, 25, 7, 8, 14], [-1, 0, 0, 0, 3, 3, -1, 6, 6, -1]
"""A prompt with three answers, one of which goes on in two ways; a prompt with two answers; a document nobody reads."""
ENDS = np.cumsum(SIZES)
SPANS = [np.arange(end - n, end) for n, end in zip(SIZES, ENDS)]


def _rows() -> list[np.ndarray]:
    paths: list[np.ndarray] = []
    for own, parent in zip(SPANS, ABOVE):
        paths.append(np.concatenate([paths[parent], own]) if parent >= 0 else own)
    return [paths[i] for i in range(len(SIZES)) if i not in ABOVE]


def _plan(*, whole: bool) -> tuple[PackedPlan, torch.Tensor]:
    read = np.concatenate([SPANS[0][-1:], SPANS[1], SPANS[4][3:], SPANS[5], SPANS[6][-1:], SPANS[7], SPANS[8]])
    return pack_rows(_rows(), int(ENDS[-1]), whole=whole, read=read), torch.from_numpy(read)


def _states_and_gradients(
    model: torch.nn.Module, plan: PackedPlan, read: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (int(ENDS[-1]),), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    with packed_execution(model):
        states = packed_hidden(model, ids, plan)
        found = states.index_select(0, read)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, states


def _near(ours: torch.Tensor, wanted: torch.Tensor, most: float) -> bool:
    return float((ours - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-9)) < most


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_the_same_in_values_and_gradients(family: str, whole: bool):
    model = model_of(family)
    self_test(model)
    assert getattr(model, PROVEN)
    plan, read = _plan(whole=whole)
    ours, gradients, states = _states_and_gradients(model, plan, read)
    wanted, expected, every = _states_and_gradients(model, replace(plan, reading=None), read)
    assert _near(ours, wanted, 1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert _near(gradients[name], gradient, 1e-4), name
    # What nobody reads was not computed: the states of one prompt differ.
    assert not _near(states[SPANS[0][:-1]], every[SPANS[0][:-1]], 1e-3)


def test_an_adapter_on_every_projection_learns_the_same():
    torch.manual_seed(0)
    model = get_peft_model(model_of("qwen2"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    self_test(model)
    plan, read = _plan(whole=False)
    ours, gradients, _ = _states_and_gradients(model, plan, read)
    wanted, expected, _ = _states_and_gradients(model, replace(plan, reading=None), read)
    assert _near(ours, wanted, 1e-5)
    for name, gradient in expected.items():
        assert _near(gradients[name], gradient, 1e-4), name


def test_the_plan_keeps_what_follows_on_a_row_and_is_whole_where_little_is_not_read():
    rows = [np.array([0, 1, 2, 3]), np.array([0, 1, 4, 5]), np.array([6, 7, 8, 9, 10, 11])]
    reading = pack_rows(rows, 12, whole=False, read=np.array([2, 4, 11])).reading
    assert reading is not None
    assert reading.kept.tolist() == [2, 3, 4, 5, 11]
    assert reading.rest.tolist() == [0, 1, 6, 7, 8, 9, 10]
    assert torch.cat([reading.kept, reading.rest])[reading.place].tolist() == list(range(12))
    assert pack_rows(rows, 12, whole=False, read=np.array([0, 6])).reading is None
    assert pack_rows(rows, 12, whole=False, read=np.array([], dtype=np.int64)).reading is None
    assert pack_rows(rows, 12, whole=False).reading is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_layer_that_does_not_give_the_same_in_part_is_computed_whole(fails: bool):
    model = model_of("llama")

    def other(module: torch.nn.Module, given: object, out: torch.Tensor) -> torch.Tensor:
        if out.shape[1] != 6:  # as many as `self_test` reads
            return out
        if fails:
            raise RuntimeError("six tokens")
        return 2.0 * out

    model.model.layers[-1].mlp.register_forward_hook(other)
    self_test(model)
    assert not hasattr(model, PROVEN)
    assert "forward" not in vars(model.model.layers[-1])
    plan, read = _plan(whole=False)
    ours, _, _ = _states_and_gradients(model, plan, read)
    wanted, _, _ = _states_and_gradients(model, replace(plan, reading=None), read)
    assert torch.equal(ours, wanted)


def test_the_layer_is_as_it_was_afterwards_and_after_an_error():
    model = model_of("llama")
    self_test(model)
    seen: list[bool] = []

    def fail() -> None:
        with packed_execution(model):
            seen.append("forward" in vars(model.model.layers[-1]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen == [True]
    assert "forward" not in vars(model.model.layers[-1])
