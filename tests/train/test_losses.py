"""Preference losses: equal to trl's on the same log-probs, and to what their papers say in closed form."""

import math
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from maypole.train import losses

PAIRS, LONGEST = 6, 9


class Says:
    """A model that answers with given token log-probs: (rows, LONGEST), one call after the other."""

    training = True
    config = SimpleNamespace()

    def __init__(self, *log_probs: torch.Tensor) -> None:
        self.answers = iter(log_probs)

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        log_probs = next(self.answers)
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def alone(value: Any) -> Any:
    return value


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=alone, gather_for_metrics=alone, unwrap_model=alone, autocast=None
)


def trainer_of(kind: type, **settings: Any) -> Any:
    """A trainer with the settings that its loss reads, and without a model or data."""
    trainer = kind.__new__(kind)
    plain: dict[str, Any] = {
        "accelerator": ACCELERATOR, "model": Says(), "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False, "ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False,
        "loss_weights": [1.0], "label_smoothing": 0.0, "precompute_ref_logps": True, "_tp_size": 1,
        "_total_train_tokens": 0, "_metrics": {"train": defaultdict(list)}, "calculate_KL": True,
    }  # fmt: skip
    for name, value in {**plain, **settings}.items():
        object.__setattr__(trainer, name, value)
    return trainer


@pytest.fixture
def answers() -> dict[str, torch.Tensor]:
    """Token log-probs and masks of PAIRS chosen and as many rejected answers, and what a reference says of them."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(LONGEST) < torch.randint(1, LONGEST + 1, (2 * PAIRS, 1), generator=draw)
    logps = -torch.rand(2 * PAIRS, LONGEST, generator=draw) * 3 * mask
    reference = (-torch.rand(2 * PAIRS, LONGEST, generator=draw) * 3 * mask).sum(1)
    return {"logps": logps, "mask": mask, "reference": reference}


def gradients(make: Any, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss's mean over pairs, and its gradient with respect to every token's log-prob."""
    tokens = logps.clone().requires_grad_()
    loss = make(tokens).mean()
    loss.backward()
    assert tokens.grad is not None
    return loss.detach(), tokens.grad


def same(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Whether loss and gradient are, in shape, type and value."""
    return all(
        (mine.shape, mine.dtype) == (other.shape, other.dtype)
        and torch.allclose(mine, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))
        for mine, other in zip(ours, theirs, strict=True)
    )


def trl_dpo(answers: dict[str, torch.Tensor], logps: torch.Tensor, kind: str, **settings: Any) -> torch.Tensor:
    """The loss of DPOTrainer itself, from the token log-probs `logps`."""
    completion = torch.cat([torch.zeros(len(answers["mask"]), 1, dtype=torch.bool), answers["mask"]], 1).long()
    ref_chosen, ref_rejected = answers["reference"].chunk(2)
    inputs = {
        "input_ids": torch.ones_like(completion), "attention_mask": torch.ones_like(completion),
        "completion_mask": completion, "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return trainer_of(DPOTrainer, loss_types=[kind], **settings)._compute_loss(Says(logps), inputs, False)


def ours_of(answers: dict[str, torch.Tensor], logps: torch.Tensor, loss: Any, *counts: str, **settings: Any) -> Any:
    """Our loss from the same token log-probs."""
    chosen, rejected = logps.sum(1).chunk(2)
    ref_chosen, ref_rejected = answers["reference"].chunk(2)
    tokens = answers["mask"].sum(1).chunk(2)
    return loss(chosen, rejected, ref_chosen, ref_rejected, *(tokens if counts else ()), **settings)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(("loss", "theirs"), [("dpo", "sigmoid"), ("hinge", "hinge")])
def test_dpo_and_hinge_equal_trls(answers, loss: str, theirs: str, beta: float):
    function = getattr(losses, loss)
    assert same(
        gradients(lambda logps: ours_of(answers, logps, function, beta=beta), answers["logps"]),
        gradients(lambda logps: trl_dpo(answers, logps, theirs, beta=beta), answers["logps"]),
    )


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_ipo_per_token_equals_trls(answers, beta: float):
    assert same(
        gradients(lambda logps: ours_of(answers, logps, losses.ipo, "tokens", beta=beta), answers["logps"]),
        gradients(lambda logps: trl_dpo(answers, logps, "ipo", beta=beta), answers["logps"]),
    )


@pytest.mark.parametrize("beta", [0.001, 0.125])
def test_sppo_with_hard_probabilities_is_half_of_trls(answers, beta: float):
    assert same(
        gradients(lambda logps: 2 * ours_of(answers, logps, partial(losses.sppo, p_chosen=1.0, p_rejected=0.0),
                                            eta=1 / beta), answers["logps"]),
        gradients(lambda logps: trl_dpo(answers, logps, "sppo_hard", beta=beta), answers["logps"]),
    )  # fmt: skip


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_selm_without_optimism_equals_trls_dpo(answers, beta: float):
    def ours(logps: torch.Tensor) -> torch.Tensor:
        chosen, rejected = logps.sum(1).chunk(2)
        ref_chosen, ref_rejected = answers["reference"].chunk(2)
        references = (ref_chosen, ref_rejected, ref_chosen)
        return losses.selm(chosen, rejected, chosen, *references, alpha=0.0, beta=beta)

    assert same(
        gradients(ours, answers["logps"]),
        gradients(lambda logps: trl_dpo(answers, logps, "sigmoid", beta=beta), answers["logps"]),
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_robust_equals_trls(answers, label_smoothing: float):
    settings = {"beta": 0.3, "label_smoothing": label_smoothing}
    assert same(
        gradients(lambda logps: ours_of(answers, logps, losses.robust, **settings), answers["logps"]),
        gradients(lambda logps: trl_dpo(answers, logps, "robust", **settings), answers["logps"]),
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_dpo_with_smoothed_labels_equals_trls_conservative_loss(answers, label_smoothing: float):
    """trl has that form in its CPO trainer: given log ratios it is cDPO's."""
    trainer = trainer_of(CPOTrainer, loss_type="sigmoid", beta=0.3, label_smoothing=label_smoothing, alpha=0.0)
    ref_chosen, ref_rejected = answers["reference"].chunk(2)

    def theirs(logps: torch.Tensor) -> torch.Tensor:
        chosen, rejected = logps.sum(1).chunk(2)
        return trainer.cpo_loss(chosen - ref_chosen, rejected - ref_rejected)[0]

    settings = {"beta": 0.3, "label_smoothing": label_smoothing}
    assert same(
        gradients(lambda logps: ours_of(answers, logps, losses.dpo, **settings), answers["logps"]),
        gradients(theirs, answers["logps"]),
    )


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 0.0)])
def test_simpo_equals_trls(answers, beta: float, gamma: float):
    trainer = trainer_of(CPOTrainer, loss_type="simpo", beta=beta, simpo_gamma=gamma, alpha=0.0)
    lengths = answers["mask"].sum(1)

    def ours(logps: torch.Tensor) -> torch.Tensor:
        return losses.simpo(*logps.sum(1).chunk(2), *lengths.chunk(2), beta=beta, gamma=gamma)

    def theirs(logps: torch.Tensor) -> torch.Tensor:
        return trainer.cpo_loss(*(logps.sum(1) / lengths).chunk(2))[0]

    assert same(gradients(ours, answers["logps"]), gradients(theirs, answers["logps"]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_equals_trls(answers, beta: float):
    """trl takes the likelihood over the prompt too, and its mean over the batch's tokens; here it is given per pair."""
    trainer = trainer_of(ORPOTrainer, beta=beta)
    lengths = answers["mask"].sum(1)

    def ours(logps: torch.Tensor) -> torch.Tensor:
        return losses.orpo(*logps.sum(1).chunk(2), *lengths.chunk(2), beta=beta)

    def theirs(logps: torch.Tensor) -> torch.Tensor:
        chosen, rejected = (logps.sum(1) / lengths).chunk(2)
        nothing = torch.zeros(1)
        trainer.concatenated_forward = lambda model, batch: (chosen, rejected, nothing, nothing, -chosen.mean())
        return trainer.get_batch_loss_metrics(None, {})[0]

    assert same(gradients(ours, answers["logps"]), gradients(theirs, answers["logps"]))


@pytest.mark.parametrize("shift", [0.5, -0.5], ids=["above", "clamped at 0"])
def test_kto_equals_trls(answers, shift: float):
    logps, mask, reference = answers["logps"], answers["mask"], answers["reference"]
    label = torch.tensor([True, False, True, True] * 3)
    others = torch.full((2 * PAIRS, LONGEST), shift)
    ref_others = torch.zeros(2 * PAIRS)
    completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.bool), mask], 1).long()
    inputs = {
        "input_ids": torch.ones_like(completion), "attention_mask": torch.ones_like(completion),
        "completion_mask": completion, "label": label, "ref_logps": reference, "ref_KL_logps": ref_others,
        "KL_input_ids": torch.ones_like(completion), "KL_attention_mask": torch.ones_like(completion),
        "KL_completion_mask": completion,
    }  # fmt: skip
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer = trainer_of(KTOTrainer, loss_type="kto", beta=0.3, **weights)
    kl = max(float(others.sum(1).mean()), 0.0)

    def ours(tokens: torch.Tensor) -> torch.Tensor:
        return losses.kto(tokens.sum(1), reference, label, kl, beta=0.3, **weights)

    assert same(
        gradients(ours, logps),
        gradients(lambda tokens: trainer._compute_loss(Says(others, tokens), inputs, False), logps),
    )


def pair(margin: float) -> tuple[torch.Tensor, ...]:
    """A pair of log-probs and the reference's, whose difference of log ratios is `margin`."""
    return tuple(torch.tensor([x], dtype=torch.float64) for x in (-5.0 + margin, -7.0, -4.0, -6.0))


def test_no_margin_costs_log_two():
    assert losses.dpo(*pair(0.0), beta=0.1).item() == pytest.approx(math.log(2))
    assert losses.dpo(*pair(0.0), beta=0.1, label_smoothing=0.3).item() == pytest.approx(math.log(2))
    assert losses.robust(*pair(0.0), beta=0.1, label_smoothing=0.3).item() == pytest.approx(math.log(2))


def test_conservative_dpo_is_least_at_the_margin_its_note_gives():
    beta, epsilon = 0.2, 0.1
    best = math.log((1 - epsilon) / epsilon) / beta
    at = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    losses.dpo(at, zero, zero, zero, beta=beta, label_smoothing=epsilon).sum().backward()
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_robust_dpo_averages_over_flipped_labels_to_dpo_on_true_ones():
    epsilon, margin = 0.2, 3.0
    chosen, rejected, ref_chosen, ref_rejected = pair(margin)
    given = {"beta": 0.3, "label_smoothing": epsilon}
    right = losses.robust(chosen, rejected, ref_chosen, ref_rejected, **given)
    wrong = losses.robust(rejected, chosen, ref_rejected, ref_chosen, **given)
    mean = (1 - epsilon) * right + epsilon * wrong
    assert mean.item() == pytest.approx(losses.dpo(*pair(margin), beta=0.3).item())


def test_ipo_is_zero_at_its_target_in_sums_and_per_token():
    assert losses.ipo(*pair(5.0), beta=0.1).item() == pytest.approx(0.0)
    assert losses.ipo(*pair(5.0), beta=0.5).item() == pytest.approx(16.0)
    chosen, rejected, ref_chosen, ref_rejected = pair(20.0)
    counts = torch.tensor([4.0]), torch.tensor([2.0])
    assert losses.ipo(chosen, rejected, ref_chosen, ref_rejected, *counts, beta=0.1).item() == pytest.approx(0.0625)


def test_hinge_ends_where_the_margin_is_one_over_beta():
    assert losses.hinge(*pair(10.0), beta=0.1).item() == pytest.approx(0.0)
    assert losses.hinge(*pair(4.0), beta=0.1).item() == pytest.approx(0.6)
    assert losses.hinge(*pair(40.0), beta=0.1).item() == 0.0


def test_simpo_is_blind_to_length_and_to_any_reference():
    def simpo(*numbers: float) -> float:
        return losses.simpo(*(torch.tensor([x]) for x in numbers), beta=2.0, gamma=1.0).item()

    assert simpo(-2.0, -3.0, 2, 2) == pytest.approx(simpo(-8.0, -6.0, 8, 4))
    assert simpo(-2.0, -3.0, 2, 2) == pytest.approx(math.log(2))  # 2 * 0.5 is just the gamma asked for


def test_orpo_of_equal_answers_is_likelihood_plus_beta_log_two():
    equal = torch.tensor([-4.0])
    loss = losses.orpo(equal, equal, torch.tensor([2]), torch.tensor([2]), beta=0.25)
    assert loss.item() == pytest.approx(2.0 + 0.25 * math.log(2))


def test_orpo_has_a_finite_gradient_for_answers_that_are_all_but_certain_or_impossible():
    chosen = torch.tensor([-1e-6, -400.0, -0.69314], requires_grad=True)
    rejected = torch.tensor([-400.0, -1e-6, -0.69315], requires_grad=True)
    losses.orpo(chosen, rejected, torch.ones(3), torch.ones(3), beta=0.1).sum().backward()
    for tensor in (chosen, rejected):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_kto_weighs_gains_and_losses_around_the_mean():
    label = torch.tensor([True, False])
    level = torch.tensor([2.0, 2.0])
    at_mean = losses.kto(level, torch.zeros(2), label, 2.0, beta=0.1, desirable_weight=3.0)
    assert at_mean.tolist() == pytest.approx([1.5, 0.5])
    above = losses.kto(level + 5, torch.zeros(2), label, 2.0, beta=0.1)
    assert above.tolist() == pytest.approx([float(F.sigmoid(torch.tensor(-0.5))), float(F.sigmoid(torch.tensor(0.5)))])


def test_rpo_is_dpo_and_the_likelihood_of_a_token_of_the_chosen_answer(answers):
    chosen, rejected = answers["logps"].sum(1).chunk(2)
    before = answers["reference"].chunk(2)
    tokens = answers["mask"].sum(1).chunk(2)[0]
    with_alpha = [
        losses.rpo(chosen, rejected, before[0], before[1], tokens, beta=0.3, rpo_alpha=a) for a in (0.0, 2.0)
    ]
    torch.testing.assert_close(with_alpha[0], losses.dpo(chosen, rejected, before[0], before[1], beta=0.3))
    torch.testing.assert_close(with_alpha[1] - with_alpha[0], -2 * chosen / tokens)


def test_rpo_of_one_pair_equals_trls_two_losses(answers):
    """trl's second term is a mean over the tokens of a batch, which is a pair's own where it is alone."""
    one = {name: value[[0, PAIRS]] for name, value in answers.items()}

    def theirs(logps: torch.Tensor) -> torch.Tensor:
        ends = [trl_dpo(one, logps, kind, beta=0.3) for kind in ("sigmoid", "sft")]
        return ends[0] + 0.7 * ends[1]

    def ours(logps: torch.Tensor) -> torch.Tensor:
        chosen, rejected = logps.sum(1).chunk(2)
        tokens, before = one["mask"].sum(1).chunk(2)[0], one["reference"].chunk(2)
        return losses.rpo(chosen, rejected, before[0], before[1], tokens, beta=0.3, rpo_alpha=0.7)

    assert same(gradients(ours, one["logps"]), gradients(theirs, one["logps"]))


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "robust"])
def test_losses_with_a_reference_pass_gradcheck(name: str):
    draw = torch.Generator().manual_seed(1)
    given = [torch.randn(4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    smoothing = {"label_smoothing": 0.1} if name in ("dpo", "robust") else {}
    assert torch.autograd.gradcheck(lambda *x: getattr(losses, name)(*x, beta=0.7, **smoothing), given)


def test_sppo_where_nothing_has_moved_is_the_square_of_its_targets_and_pulls_on_each_answer_alone():
    eta, p_w, p_l = 8.0, torch.tensor([0.75, 0.5]), torch.tensor([0.125, 0.5])
    at = torch.tensor([-3.0, -4.0])
    chosen, rejected = at.clone().requires_grad_(), at.clone().requires_grad_()
    loss = losses.sppo(chosen, rejected, at, at, p_w, p_l, eta=eta)
    loss.sum().backward()
    torch.testing.assert_close(loss, eta**2 / 2 * ((p_w - 0.5) ** 2 + (p_l - 0.5) ** 2))
    torch.testing.assert_close(chosen.grad, -eta * (p_w - 0.5))
    torch.testing.assert_close(rejected.grad, -eta * (p_l - 0.5))


def test_sppo_does_not_care_which_of_two_answers_is_called_chosen():
    chosen, rejected, ref_chosen, ref_rejected = pair(3.0)
    there = losses.sppo(chosen, rejected, ref_chosen, ref_rejected, 0.8, 0.3, eta=8.0)
    back = losses.sppo(rejected, chosen, ref_rejected, ref_chosen, 0.3, 0.8, eta=8.0)
    assert there.item() == back.item()


def step_of(start: torch.Tensor, p: torch.Tensor, eta: float) -> torch.Tensor:
    """The distribution that minimises the pointwise loss from `start`, normalised: (answers,) both."""
    at = start.log()
    logits = at.clone().requires_grad_()
    loss = losses.sppo_pointwise(logits, at, p, eta=eta).sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    newton = at - gradient.detach() / 2  # a sum of squares with curvature 2
    return torch.softmax(newton, 0)


def test_sppo_pointwise_is_least_at_a_step_of_multiplicative_weights():
    draw = torch.Generator().manual_seed(0)
    start, p = torch.rand(6, generator=draw).softmax(0).double(), torch.rand(6, generator=draw).double()
    for eta in (0.1, 8.0):
        weights = start * torch.exp(eta * p)
        torch.testing.assert_close(step_of(start, p, eta), weights / weights.sum(), rtol=1e-6, atol=1e-9)


def test_sppo_leaves_the_policy_alone_without_eta_or_preferences():
    start = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(step_of(start, torch.tensor([0.9, 0.4, 0.1]).double(), eta=1e-9), start)
    torch.testing.assert_close(step_of(start, torch.full((3,), 0.5).double(), eta=1000.0), start)
