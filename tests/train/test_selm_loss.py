"""The optimism term: its sign, its size and where it comes from, each against arithmetic done another way."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from maypole.train import losses

PAIRS = 6


def drawn(seed: int, count: int = 6) -> list[torch.Tensor]:
    """`count` vectors of PAIRS log-probs."""
    draw = torch.Generator().manual_seed(seed)
    return [-5 * torch.rand(PAIRS, generator=draw, dtype=torch.float64) for _ in range(count)]


def gradient(loss: torch.Tensor, of: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss.sum(), of, retain_graph=True))


def test_without_optimism_the_loss_is_dpos_to_the_last_bit():
    given = [x.requires_grad_() for x in drawn(0)]
    chosen, rejected, _, ref_chosen, ref_rejected, _ = given
    ours = losses.selm(*given, alpha=0.0, beta=0.1)
    theirs = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1)
    written = -F.logsigmoid(0.1 * ((chosen - ref_chosen) - (rejected - ref_rejected)))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, written)
    for a, b in zip(gradient(ours, [chosen, rejected]), gradient(theirs, [chosen, rejected])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("alpha", [-0.2, 0.0, 0.001, 0.4])
def test_at_the_reference_the_loss_is_log_two_and_the_push_is_alpha_beta(alpha: float):
    chosen, rejected, response = (x.requires_grad_() for x in drawn(1, 3))
    references = [x.detach() for x in (chosen, rejected, response)]
    loss = losses.selm(chosen, rejected, response, *references, alpha=alpha, beta=0.3)
    torch.testing.assert_close(loss.detach(), torch.full_like(loss, math.log(2)), rtol=0, atol=1e-15)
    (push,) = gradient(loss, [response])
    torch.testing.assert_close(push, torch.full_like(push, alpha * 0.3), rtol=0, atol=1e-15)


def test_the_gradient_is_the_papers():
    """-β σ(β(Δ_l - Δ_w)) (∇log π(y_w) - ∇log π(y_l)) + αβ ∇log π(y_r)."""
    alpha, beta = 0.3, 0.7
    chosen, rejected, response, *references = (x.requires_grad_() for x in drawn(2))
    loss = losses.selm(chosen, rejected, response, *references, alpha=alpha, beta=beta)
    margin = (chosen - references[0]) - (rejected - references[1])
    weight = (beta * torch.sigmoid(-beta * margin)).detach()
    found = gradient(loss, [chosen, rejected, response])
    for ours, written in zip(found, (-weight, weight, torch.full_like(weight, alpha * beta))):
        torch.testing.assert_close(ours, written, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["selm", "xpo"])
def test_both_presets_pass_gradcheck(name: str):
    given = [x.requires_grad_() for x in drawn(3)]
    assert torch.autograd.gradcheck(lambda *x: getattr(losses, name)(*x, alpha=0.2, beta=0.7), given)


def test_xpo_is_selm_with_alpha_in_nats():
    given = drawn(4)
    alike = losses.selm(*given, alpha=0.05 / 0.2, beta=0.2)
    torch.testing.assert_close(losses.xpo(*given, alpha=0.05, beta=0.2), alike)
    chosen, rejected, response, ref_chosen, ref_rejected, ref_response = given
    printed = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.2) + 0.05 * response
    torch.testing.assert_close(losses.xpo(*given, alpha=0.05, beta=0.2), printed - 0.05 * ref_response)


def test_a_chosen_answer_that_is_the_references_is_learnt_below_one_half_and_unlearnt_above():
    for alpha, sign in ((0.49, -1), (0.51, 1)):
        chosen = torch.tensor([-2.0], requires_grad=True)
        rejected = torch.tensor([-3.0])
        references = (chosen.detach(), rejected, chosen.detach())
        (slope,) = gradient(losses.selm(chosen, rejected, chosen, *references, alpha=alpha, beta=0.1), [chosen])
        assert math.copysign(1, slope.item()) == sign


def test_a_step_of_optimism_alone_leaves_the_mode_and_raises_entropy():
    logits = torch.tensor([2.0, 0.5, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    mode = 0
    before = logits.log_softmax(0)
    losses.optimism(before[mode], before[mode].detach(), weight=0.1).backward()
    assert logits.grad is not None
    after = (logits - 1.0 * logits.grad).log_softmax(0)
    assert after[mode] < before[mode]
    assert -(after.exp() * after).sum() > -(before.exp() * before).sum()


@pytest.mark.parametrize("count", [2, 50])
def test_a_sampled_answer_has_no_push_in_the_mean_and_the_greedy_one_has(count: int):
    """Σ_y π_ref(y) ∇log π(y) = 0 where π is π_ref: drawn answers push nowhere in a round's first step."""
    draw = torch.Generator().manual_seed(count)
    logits = torch.randn(count, generator=draw, dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(0)
    (sampled,) = gradient((logps.detach().exp() * logps).sum(), [logits])
    assert float(sampled.abs().max()) < 1e-7
    (greedy,) = gradient(logits.log_softmax(0).max(), [logits])
    assert float(greedy.abs().max()) > 0.1


def test_what_is_added_to_all_three_shifts_the_optimism_alone():
    chosen, rejected, response, *references = drawn(5)
    plain = losses.selm(chosen, rejected, response, *references, alpha=0.3, beta=0.7)
    moved = losses.selm(chosen + 2, rejected + 2, response + 2, *references, alpha=0.3, beta=0.7)
    torch.testing.assert_close(moved, plain + 0.3 * 0.7 * 2)


def test_permuted_pairs_have_permuted_losses():
    given = drawn(6)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    plain = losses.selm(*given, alpha=0.3, beta=0.7)
    assert torch.equal(losses.selm(*(x[order] for x in given), alpha=0.3, beta=0.7), plain[order])


def test_the_term_is_the_best_case_over_policies():
    """max_π E_π[r] - E_ref[r] - β KL(π ‖ π_ref) = -β E_ref[log π_r/π_ref], π_r ∝ π_ref exp(r/β): found by climbing."""
    rng = np.random.default_rng(0)
    reward, beta = rng.normal(size=7), 0.4
    ref = rng.dirichlet(np.ones(7))

    def lost(logits: np.ndarray) -> float:
        pi = np.exp(logits - logits.max())
        pi /= pi.sum()
        return float(-(pi @ reward - ref @ reward - beta * (pi * np.log(pi / ref)).sum()))

    best = -minimize(lost, np.log(ref), method="BFGS", options={"gtol": 1e-9}).fun
    pi_r = ref * np.exp(reward / beta)
    pi_r /= pi_r.sum()
    term = losses.optimism(torch.from_numpy(np.log(pi_r)), torch.from_numpy(np.log(ref)), weight=beta).numpy()
    assert best == pytest.approx(-(ref @ term), abs=1e-7)


def test_the_floor_ends_the_push_and_nothing_else():
    response = torch.tensor([-1.0, -30.0], requires_grad=True)
    reference = torch.tensor([-0.5, -0.5])
    term = losses.optimism(response, reference, weight=0.1, floor=-20.0)
    assert term.tolist() == pytest.approx([-0.05, -2.0])
    (push,) = gradient(term, [response])
    assert push.tolist() == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize("pair", ["dpo", "ipo", "hinge", "robust"])
def test_the_term_stands_beside_any_pair_loss(pair: str):
    chosen, rejected, response, *references = (x.requires_grad_() for x in drawn(7))
    settings = {"label_smoothing": 0.1} if pair == "robust" else {}
    alone = getattr(losses, pair)(chosen, rejected, *references[:2], beta=0.5, **settings)
    together = alone + losses.optimism(response, references[2], weight=0.2 * 0.5)
    for a, b in zip(gradient(together, [chosen, rejected]), gradient(alone, [chosen, rejected])):
        assert torch.equal(a, b)
    (push,) = gradient(together, [response])
    torch.testing.assert_close(push, torch.full_like(push, 0.1))
