import numpy as np
import pytest
import torch

from maypole.core.errors import MaypoleError, UnsupportedModel
from maypole.models.attention import MissingPlan, configs, packed_execution
from maypole.models.forward import packed_hidden, self_test
from maypole.models.head import head_of
from maypole.models.packing import causal_attention, documents, pack_rows
from maypole.models.plan import AttentionSpec, attention_plan
from tests.tiny_models import FAMILIES, VOCABULARY, model_of

LENGTHS = [9, 1, 30, 4, 12, 300]


def _texts(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_equal_one_by_one_in_values_and_gradients(family: str):
    model = model_of(family)
    texts = _texts(LENGTHS)
    alone = torch.cat([model(input_ids=t[None], use_cache=False).logits[0] for t in texts])
    weight = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1))
    (alone * weight).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with packed_execution(model):
        hidden = packed_hidden(model, torch.cat(texts), documents(LENGTHS))
        packed = head_of(model).logits(hidden)
        (packed * weight).sum().backward()
    assert _relative(packed, alone) < 1e-5
    for name, parameter in model.named_parameters():
        if name in expected:
            assert _relative(parameter.grad, expected[name]) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_equals_its_prompt_repeated(family: str):
    model = model_of(family)
    prompt, left, right, deeper, other = _texts([11, 5, 7, 4, 6], seed=2)
    # prompt -> left, prompt -> right -> deeper, prompt -> right -> other
    tokens = torch.cat([prompt, left, right, deeper, other])
    a, b, c, d, e, f = np.cumsum([0, 11, 5, 7, 4, 6]).tolist()
    span = np.arange(f)
    root, right_path = span[a:b], np.concatenate([span[a:b], span[c:d]])
    rows = [
        np.concatenate([root, span[b:c]]),
        np.concatenate([right_path, span[d:e]]),
        np.concatenate([right_path, span[e:f]]),
    ]
    with packed_execution(model), torch.no_grad():
        got = head_of(model).logits(packed_hidden(model, tokens, pack_rows(rows, f)))
    with torch.no_grad():
        for row in rows:
            want = model(input_ids=tokens[row][None], use_cache=False).logits[0]
            assert _relative(got[row], want) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", [40, 330])
def test_ends_that_ask_alone_equal_whole_rows_in_values_and_gradients(family: str, prompt: int):
    model = model_of(family)
    # Two prompts, one with three answers, one of which goes on in two ways, and one with two answers.
    sizes = [prompt, 9, 3, 30, 12, 1, 25, 7, 8]
    above = [-1, 0, 0, 0, 3, 3, -1, 6, 6]
    ends = np.cumsum(sizes)
    span = [np.arange(end - n, end) for n, end in zip(sizes, ends)]
    paths: list[np.ndarray] = []
    for own, parent in zip(span, above):
        paths.append(np.concatenate([paths[parent], own]) if parent >= 0 else own)
    rows = [paths[i] for i in range(len(sizes)) if i not in above]
    text = _texts([int(ends[-1])], seed=3)[0]
    weight = torch.randn((len(text), VOCABULARY), generator=torch.Generator().manual_seed(1))

    def run(whole: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        plan = pack_rows(rows, len(text), whole=whole)
        assert (sum(group.asking is not None for group in plan.groups) > 0) is not whole
        with packed_execution(model):
            logits = head_of(model).logits(packed_hidden(model, text, plan))
            (logits * weight).sum().backward()
        return logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (ours, gradients), (wanted, expected) = run(whole=False), run(whole=True)
    assert _relative(ours, wanted) < 1e-5
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert _relative(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_other_documents_never_change_a_document(family: str):
    model = model_of(family)
    texts = _texts([20, 33, 20])
    changed = [texts[0], (texts[1] + 5) % VOCABULARY, texts[2]]
    with packed_execution(model), torch.no_grad():
        before = packed_hidden(model, torch.cat(texts), documents([20, 33, 20]))
        after = packed_hidden(model, torch.cat(changed), documents([20, 33, 20]))
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[53:], after[53:])
    assert not torch.allclose(before[20:53], after[20:53])


def test_attention_in_bf16_keeps_its_weights_in_bf16_alone_and_has_the_gradients_of_wider_numbers():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 50, 4, 16), (2, 50, 2, 16), (2, 50, 2, 16)]
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16() for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    held: list[torch.Tensor] = []

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        given = [x.to(dtype, copy=True).requires_grad_(True) for x in wide]
        out = causal_attention(*given, AttentionSpec(layer=0, scaling=0.25))
        (out * weight.to(dtype)).sum().backward()
        return [x.grad.double() for x in given if x.grad is not None]

    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x) or x, lambda x: x):
        found = gradients(torch.bfloat16)
    assert {x.dtype for x in held} == {torch.bfloat16}
    for ours, exact in zip(found, gradients(torch.float64), strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 1e-2


def test_positions_restart_with_every_document_and_run_along_every_path():
    assert documents([3, 1, 2]).positions.tolist() == [0, 1, 2, 0, 0, 1]
    tree = pack_rows([np.array([0, 1, 2]), np.array([0, 1, 3, 4])], 5)
    assert tree.positions.tolist() == [0, 1, 2, 2, 3]


def test_a_slot_on_no_row_is_an_error():
    with pytest.raises(ValueError, match="on no attention row"):
        pack_rows([np.array([0, 1])], 3)


def test_a_missing_plan_raises_inside_packed_execution_and_not_outside():
    model = model_of("llama")
    ids = _texts([7])[0][None]
    before = [c._attn_implementation for c in configs(model)]
    plain = model(input_ids=ids).logits
    with packed_execution(model), pytest.raises(MissingPlan):
        model(input_ids=ids)
    assert [c._attn_implementation for c in configs(model)] == before
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_packed_execution_refuses_a_batch_of_rows():
    model = model_of("llama")
    ids = torch.stack(_texts([7, 7]))
    with packed_execution(model), attention_plan(documents([7])), pytest.raises(MaypoleError, match="one row"):
        model(input_ids=ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_test_passes_on_every_family(family: str):
    model = model_of(family)
    self_test(model)
    assert model._maypole_packed_ok


def test_alibi_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModel, match="bloom"):
        self_test(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_gradients_with_checkpointing_equal_those_without(family: str):
    from contextlib import nullcontext

    model = model_of(family)
    texts = _texts([12, 40, 9])
    plan = documents([12, 40, 9])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()
        with packed_execution(model):
            packed_hidden(model, torch.cat(texts), plan).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    without = gradients()
    context = {"context_fn": lambda: (nullcontext(), attention_plan(plan)), "use_reentrant": False}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=context)
    with_checkpoints = gradients()
    assert without.keys() == with_checkpoints.keys()
    for name, gradient in without.items():
        assert torch.equal(gradient, with_checkpoints[name]), name
