import pytest
import torch
import torch.nn.functional as F

from maypole.models import head
from maypole.models.head import head_of, token_logprobs, weighted_logprobs
from tests.tiny_models import model_of


def _data(n: int, d: int, v: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, generator=g, dtype=dtype, requires_grad=True)
    bias = torch.randn(v, generator=g, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(v, (n,), generator=g), torch.randn(n, generator=g, dtype=dtype)


def _reference(hidden, weight, bias, targets, softcap, scale):
    z = (hidden @ weight.t() + (0 if bias is None else bias)) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 7, 256])
@pytest.mark.parametrize(("softcap", "scale", "with_bias"), [(None, 1.0, False), (3.0, 0.5, True), (None, 2.0, True)])
@pytest.mark.parametrize("n", [0, 20])
@pytest.mark.parametrize("together", [head.TOGETHER, 100])
def test_chunked_values_and_gradients_equal_log_softmax(
    n: int, together: int, chunk: int, softcap, scale: float, with_bias: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "TOGETHER", together)
    hidden, weight, bias, targets, weights = _data(n, 6, 11)
    bias = bias if with_bias else None
    inputs = [t for t in (hidden, weight, bias) if t is not None]
    want = _reference(hidden, weight, bias, targets, softcap, scale)
    gradients = torch.autograd.grad((want * weights).sum(), inputs)
    options = {"bias": bias, "softcap": softcap, "scale": scale, "chunk": chunk}
    got = token_logprobs(hidden, weight, targets, **options)
    two_pass = torch.autograd.grad((got * weights).sum(), inputs)
    total, logps = weighted_logprobs(hidden, weight, targets, weights, **options)
    fused = torch.autograd.grad(total * 2.0, inputs)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    torch.testing.assert_close(logps, want.detach(), atol=1e-12, rtol=0)
    for g, a, b in zip(gradients, two_pass, fused):
        torch.testing.assert_close(a, g, atol=1e-10, rtol=0)
        torch.testing.assert_close(b, 2 * g, atol=1e-10, rtol=0)


def test_gradcheck_in_double_precision():
    hidden, weight, bias, targets, weights = _data(5, 3, 7)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, targets, bias=b, softcap=2.0, chunk=2), (hidden, weight, bias)
    )
    assert torch.autograd.gradcheck(
        lambda h, w, b: weighted_logprobs(h, w, targets, weights, bias=b, chunk=2)[0], (hidden, weight, bias)
    )


def test_a_frozen_head_gets_no_gradient_and_hidden_the_same_one():
    hidden, weight, _, targets, weights = _data(9, 4, 8)
    (both,) = torch.autograd.grad(weighted_logprobs(hidden, weight, targets, weights)[0], [hidden])
    frozen = weight.detach()
    (alone,) = torch.autograd.grad(weighted_logprobs(hidden, frozen, targets, weights)[0], [hidden])
    assert torch.equal(both, alone)
    assert frozen.grad is None


def test_without_grad_mode_nothing_is_kept_for_backward():
    hidden, weight, _, targets, weights = _data(9, 4, 8)
    with torch.no_grad():
        total, logps = weighted_logprobs(hidden, weight, targets, weights)
    assert not total.requires_grad
    torch.testing.assert_close(total, (weights * logps).sum())


def test_bf16_under_autocast_stays_close_to_fp32():
    hidden, weight, _, targets, weights = _data(40, 16, 64, torch.float32)
    want = token_logprobs(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_logprobs(hidden, weight, targets)
        total, _ = weighted_logprobs(hidden, weight, targets, weights)
    total.backward()
    assert got.dtype == torch.float32
    assert float((got - want).detach().abs().max()) < 0.1
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_head_of_gives_the_models_own_logits(family: str):
    model = model_of(family)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(head_of(model).logits(hidden), model(input_ids=ids).logits[0])
        logps = token_logprobs(hidden[:-1], head_of(model).weight, ids[0, 1:], softcap=head_of(model).softcap)
        want = F.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(logps, want, atol=1e-5, rtol=0)


def test_a_lora_on_the_head_is_part_of_its_weight_and_gets_its_gradient():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("gpt_neox"), LoraConfig(r=2, target_modules=["lm_head"], lora_alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(3, 20)[None]
    hidden = model.get_base_model().base_model(input_ids=ids).last_hidden_state[0].detach()
    want = F.log_softmax(model(input_ids=ids).logits[0].float(), -1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    got = token_logprobs(hidden[:-1], head_of(model).weight, ids[0, 1:])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    loras = [p for n, p in model.named_parameters() if "lora_" in n]
    for a, b in zip(torch.autograd.grad(want.sum(), loras), torch.autograd.grad(got.sum(), loras)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_few_rows_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch):
    hidden, weight, bias, targets, _ = _data(20, 6, 11)
    want = _reference(hidden, weight, bias, targets, None, 1.0)
    for numbers in (1, 11, 35, 10_000):
        monkeypatch.setattr(head, "AT_ONCE", numbers)
        got = token_logprobs(hidden, weight, targets, bias=bias, chunk=8)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("vocabulary", [9, 500])
def test_gradients_in_fp32_are_those_of_double_precision(vocabulary: int):
    hidden, weight, _, targets, weights = _data(300, 64, vocabulary)
    want = torch.autograd.grad((_reference(hidden, weight, None, targets, None, 1.0) * weights).sum(), (hidden, weight))
    single = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    got = torch.autograd.grad((token_logprobs(*single, targets) * weights.float()).sum(), single)
    for g, w in zip(got, want):
        assert g.shape == w.shape
        assert (g - w).abs().max() < 1e-5 * w.abs().max()


def test_in_bf16_the_gradient_of_a_target_that_is_almost_certain_is_not_rounded_away():
    hidden, weight, targets = torch.zeros(1, 4), torch.zeros(3, 4), torch.tensor([1])
    hidden[0, 0], weight[1, 0] = 4.0, 1.75  # p = 0.998
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    want = torch.autograd.grad(_reference(hidden, weight, None, targets, None, 1.0).sum(), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logprobs(hidden, weight, targets)
    for g, w in zip(torch.autograd.grad(logps.sum(), (hidden, weight)), want):
        assert (g - w).abs().max() < 0.01 * w.abs().max()


def test_a_target_that_is_too_unlikely_to_be_held_has_its_logprob_with_and_without_a_gradient():
    hidden, weight, targets = torch.zeros(3, 4), torch.zeros(5, 4), torch.tensor([0, 1, 2])
    hidden[:, 0], weight[1, 0], weight[2, 0] = torch.tensor([20.0, 20.0, 1.0]), 20.0, -20.0
    want = _reference(hidden.double(), weight.double(), None, targets, None, 1.0)
    got = token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), targets)
    with torch.no_grad():
        assert torch.equal(token_logprobs(hidden, weight, targets), got.detach())
        assert torch.equal(token_logprobs(hidden[1:2], weight, targets[1:2]), got.detach()[1:2])
    assert float(want.min()) < -300
    torch.testing.assert_close(got.detach().double(), want, atol=1e-4, rtol=1e-6)
    wanted = torch.autograd.grad(_reference(hidden, weight, None, targets, None, 1.0).sum(), (hidden, weight))
    for g, w in zip(torch.autograd.grad(got.sum(), (hidden, weight)), wanted):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("together", [head.TOGETHER, 100, 1])
def test_a_frozen_head_takes_two_products_and_a_trained_one_three_where_its_errors_fit(
    together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "TOGETHER", together)
    hidden, weight, _, targets, weights = _data(20, 4, 8)
    sizes: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
        sizes.append((len(x), len(weight), x.shape[1]))
        return torch.mm(x, weight.t(), out=room)

    monkeypatch.setattr(head, "product", counted)
    work = {}
    for name, w in (("frozen", weight.detach()), ("trained", weight)):
        sizes.clear()
        (token_logprobs(hidden, w, targets, chunk=4) * weights).sum().backward()
        work[name] = sum(a * b * c for a, b, c in sizes) / (20 * 4 * 8)
    assert work["frozen"] == 2
    assert work["trained"] == {head.TOGETHER: 3.0, 100: 3.4, 1: 4.0}[together]
