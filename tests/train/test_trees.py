"""A tree whose answers share a prompt is the same as the prompt repeated, through a loss that is not linear."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from maypole.train import Segment
from maypole.train.batch import pack
from maypole.train.reference import ReferenceLogps
from tests.tiny_models import model_of
from tests.train.train_fixtures import (
    Preferences,
    context,
    farthest,
    ids_of,
    leaf,
    lm_with,
    passed,
    store_of,
    tree_rows,
)


def repeated(tree: Segment) -> Segment:
    """The same answers, each with all that stands before it in a copy of its own."""

    def paths(segment: Segment, before: list[int], scored: list[float]):
        ids, weights = before + segment.ids, scored + segment.weights
        if not segment.children:
            yield Segment(ids, weights, segment.name)
        for child in segment.children:
            yield from paths(child, ids, weights)

    return Segment([], [], "prompt", tuple(paths(tree, [], [])))


PAIR = context(ids_of(11, 0), leaf(ids_of(7, 1), "chosen"), leaf(ids_of(4, 2), "rejected"))
SAMPLES = context(ids_of(5, 0), *(leaf(ids_of(3 + i, i), f"sample-{i}") for i in range(8)))
DEEP = context(
    ids_of(6, 0),
    leaf(ids_of(5, 1), "a"),
    context(ids_of(4, 2), leaf(ids_of(3, 3), "b"), context(ids_of(2, 4), leaf(ids_of(6, 5), "c"), leaf([9], "d"))),
)
NO_PROMPT = context([], leaf(ids_of(7, 1), "chosen"), leaf(ids_of(9, 2), "rejected"))
ALIKE = context(ids_of(8, 0), leaf(ids_of(6, 1), "chosen"), leaf(ids_of(6, 1), "rejected"))
TREES = {"pair": PAIR, "eight samples": SAMPLES, "depth three": DEEP, "no prompt": NO_PROMPT, "identical": ALIKE}


def reference_of(lm, trees: list[Segment]) -> torch.Tensor:
    """Log-probs of another model on the scored tokens of `trees`, in their order."""
    store = store_of(tree_rows(trees), Preferences(), lm)
    return ReferenceLogps(lm, "fp32", None)._compute(pack(store, np.arange(len(store))))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("name", TREES)
def test_a_tree_equals_its_prompt_repeated(name: str, family: str):
    lm, frozen = lm_with(model_of(family).double()), lm_with(model_of(family, seed=1).double())
    shared = [TREES[name], PAIR] if name != "pair" else [PAIR]
    apart = [repeated(tree) for tree in shared]
    results = []
    for trees in (shared, apart):
        known = reference_of(frozen, trees)
        # Differently named answers cannot stand in one batch of this objective: each tree is a batch of its own.
        results.append(passed(lm, tree_rows(trees), Preferences(), reference=known, together=False))
    (loss, gradients), (other_loss, other) = results
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert farthest(gradients, other) < 1e-6


def test_identical_answers_have_no_preference_and_no_gradient_between_them():
    lm = lm_with(model_of("llama"))
    loss, gradients = passed(lm, tree_rows([ALIKE]), Preferences(), reference=reference_of(lm, [ALIKE]))
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-6


def test_shared_tokens_are_computed_once_and_predict_every_childs_first_token():
    lm = lm_with(model_of("llama"))
    store = store_of(tree_rows([PAIR]), Preferences(), lm)
    batch = pack(store, np.array([0]))
    assert len(batch.input_ids) == 11 + 7 + 4
    assert batch.source.tolist() == [10, *range(11, 17), 10, *range(18, 21)]
    assert batch.plan.positions.tolist() == [*range(11), *range(11, 18), *range(11, 15)]
    assert store.unshared_tokens == 2 * 11 + 7 + 4


def test_a_pair_that_is_alike_once_cut_is_dropped_and_counted():
    lm = lm_with(model_of("llama"))
    late = context(ids_of(10, 0), leaf([5, 6, 7, 8], "chosen"), leaf([5, 6, 7, 9], "rejected"))
    full = context(ids_of(20, 0), leaf([5], "chosen"), leaf([6], "rejected"))
    store = store_of(tree_rows([PAIR, late, full, ALIKE]), Preferences(), lm, max_length=13)
    assert store.dropped == {"answers are alike once cut": 1, "prompt fills max_length": 1}
    assert store.row_index.tolist() == [0, 3]  # answers that were alike before are kept


def test_segments_weigh_what_they_say():
    lm = lm_with(model_of("llama"))
    heavy = replace(PAIR, children=tuple(replace(c, weights=[2.0 * w for w in c.weights]) for c in PAIR.children))
    store = store_of(tree_rows([PAIR, heavy]), Preferences(), lm)
    assert store.weight_of(np.array([0])) == 11.0
    assert store.weight_of(np.array([0, 1])) == 33.0
