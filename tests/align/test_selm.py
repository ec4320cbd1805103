"""SELM: a pair and the policy's own answer as one tree, candidates in their order, and a reference that moves."""

import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from maypole.align.config import OnlineConfig
from maypole.align.online import online
from maypole.align.preference import Pairs
from maypole.align.preference_options import PreferenceOptions
from maypole.align.selm import DELTA, DeltaWatch, OptimisticPairs, Selm, optimistic_pair, outcome
from maypole.align.selm_options import SelmOptions
from maypole.core.artifact import Artifact
from maypole.core.errors import ConfigError, DataError
from maypole.core.progress import set_quiet
from maypole.engine import Sampling
from maypole.train import Segment, fit, losses
from maypole.train.batch import pack
from maypole.train.reference import ReferenceLogps
from tests.align.online_fixtures import low_bytes, policy, prompts, training
from tests.tiny_models import model_of
from tests.train.train_fixtures import config, farthest, ids_of, lm_with, passed, store_of

BETA = 0.3
DPO = PreferenceOptions(beta=BETA)
SELM = OptimisticPairs(DPO, 0.2)


def row(chosen: list[int], rejected: list[int], response: list[int] | None = None) -> dict[str, Any]:
    """A row of answers that a model gave, by their tokens."""
    texts = {"prompt": "p", "chosen": "c", "rejected": "r"}
    ids = {"prompt_ids": ids_of(9, 0), "chosen_ids": chosen, "rejected_ids": rejected}
    if response is None:
        return texts | ids
    return texts | ids | {"reference_response": "y", "reference_response_ids": response}


A, B, C = ids_of(7, 1), ids_of(4, 2), ids_of(6, 3)
THREE, OWN_WINS, OWN_LOSES, TIE, ALL_ONE = row(A, B, C), row(A, B, A), row(A, B, B), row(A, A, C), row(A, A, A)


@pytest.fixture(autouse=True)
def _own_cache_and_quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    set_quiet(True)
    yield
    set_quiet(False)


def tree_of(given: dict[str, Any]) -> Segment:
    tree = SELM.segments(given, None)  # type: ignore[arg-type]
    assert isinstance(tree, Segment)
    return tree


def reference_of(lm: Any, rows: list[dict], objective: Any) -> torch.Tensor:
    store = store_of(Dataset.from_list(rows), objective, lm)
    return ReferenceLogps(lm, "fp32", None)._compute(pack(store, np.arange(len(store))))


def sums_of(lm: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    """log π of chosen, rejected and reference response, each answer behind a prompt of its own."""
    found = []
    for name in ("chosen", "rejected", "reference_response"):
        before, answer = given["prompt_ids"], given[f"{name}_ids"]
        logits = lm.model(input_ids=torch.tensor([before + answer])).logits[0].float()
        logps = logits.log_softmax(-1)[len(before) - 1 : -1]
        found.append(logps.gather(1, torch.tensor(answer)[:, None]).sum())
    return found


def test_a_prompt_and_its_three_answers_are_one_tree():
    tree = tree_of(THREE)
    assert tree.ids == THREE["prompt_ids"]
    assert [(child.name, child.ids) for child in tree.children] == [
        ("chosen", A), ("rejected", B), ("reference_response", C),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (OWN_WINS, ["chosen+reference_response", "rejected"]),
        (OWN_LOSES, ["chosen", "rejected+reference_response"]),
        (TIE, ["chosen+rejected", "reference_response"]),
        (ALL_ONE, ["chosen+rejected+reference_response"]),
    ],
)
def test_answers_that_are_the_same_are_computed_once(given: dict[str, Any], names: list[str]):
    assert [child.name for child in tree_of(given).children] == names


@pytest.mark.parametrize("given", [THREE, OWN_WINS, OWN_LOSES, TIE, ALL_ONE])
def test_packed_loss_and_gradients_are_those_of_the_answers_one_by_one(given: dict[str, Any]):
    lm, frozen = lm_with(model_of("llama")), lm_with(model_of("llama", seed=1))
    rows = [given, THREE]
    known = reference_of(frozen, rows, SELM)
    loss, gradients = passed(lm, Dataset.from_list(rows), SELM, reference=known)
    lm.model.zero_grad()
    written = torch.zeros(())
    for one in rows:
        with torch.no_grad():
            references = sums_of(frozen, one)
        pieces = [x[None] for x in (*sums_of(lm, one), *references)]
        written = written + losses.selm(*pieces, alpha=0.2, beta=BETA).sum()
    written.backward()
    expected = {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}
    assert loss == pytest.approx(written.item(), abs=2e-4)
    assert farthest(gradients, expected) < 1e-4


def test_without_optimism_loss_and_gradients_are_those_of_pairs_to_the_last_bit():
    lm, frozen = policy(), policy(seed=1)
    rows = [{"prompt": f"{i} ", "chosen": "yes" * i, "rejected": "no", "reference_response": "no"} for i in (1, 2, 3)]
    plain = OptimisticPairs(DPO, 0.0)
    known = reference_of(frozen, rows, plain)
    ours = passed(lm, Dataset.from_list(rows), plain, reference=known)
    theirs = passed(lm, Dataset.from_list(rows), Pairs(DPO), reference=known)
    assert ours[0] == theirs[0]
    assert all(torch.equal(ours[1][name], gradient) for name, gradient in theirs[1].items())


@pytest.mark.parametrize("given", [TIE, ALL_ONE])
def test_a_tie_costs_log_two_and_only_leaves_the_policys_own_answer(given: dict[str, Any]):
    lm = lm_with(model_of("llama"))
    loss, gradients = passed(lm, Dataset.from_list([given]), SELM, reference=reference_of(lm, [given], SELM))
    lm.model.zero_grad()
    (0.2 * BETA * sums_of(lm, given)[2]).backward()
    expected = {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert farthest(gradients, expected) < 1e-5


def test_one_step_without_optimism_is_a_step_of_trls_dpo_trainer(tmp_path):
    rows = [{"prompt": f"ask {i} ", "chosen": "yes" * (1 + i), "rejected": "no" * (3 - i)} for i in range(3)]
    # AdamW's first step is the sign of a gradient much above epsilon: rounding would decide where that is all but 0.
    settings: dict[str, Any] = {
        "learning_rate": 1e-3, "max_steps": 1, "lr_scheduler_type": "constant", "adam_epsilon": 1e-4,
    }  # fmt: skip
    theirs = policy()
    trainer = DPOTrainer(
        theirs.model, ref_model=policy(seed=1).model, train_dataset=Dataset.from_list(rows),
        processing_class=theirs.tokenizer,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=3, beta=BETA, use_cpu=True, bf16=False,
            gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True, **settings,
        ),
    )  # fmt: skip
    trainer.train()
    ours = policy()
    own = Dataset.from_list([{**given, "reference_response": "perhaps"} for given in rows])
    frozen = policy(seed=1)
    fit(
        ours, own, OptimisticPairs(DPO, 0.0), config(examples_per_step=3, **settings), out=tmp_path / "ours",
        reference=frozen,
    )  # fmt: skip
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters()):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_any_pair_loss_with_a_reference_can_stand_beside_the_term():
    lm, frozen = lm_with(model_of("llama")), lm_with(model_of("llama", seed=1))
    selm = OptimisticPairs(PreferenceOptions(loss="ipo", beta=BETA), 0.2)
    given = [THREE, OWN_WINS]
    loss, _ = passed(lm, Dataset.from_list(given), selm, reference=reference_of(frozen, given, selm))
    written = 0.0
    with torch.no_grad():
        for one in given:
            chosen, rejected, response = sums_of(lm, one)
            ref_chosen, ref_rejected, ref_response = sums_of(frozen, one)
            lengths = (len(one["chosen_ids"]), len(one["rejected_ids"]))
            pair = losses.ipo(chosen, rejected, ref_chosen, ref_rejected, *lengths, beta=BETA)
            written += float(pair + 0.2 * BETA * (response - ref_response))
    assert loss == pytest.approx(written, rel=1e-5)
    with pytest.raises(ConfigError, match="loss"):
        Selm(preference=PreferenceOptions(loss="simpo"))


def test_a_row_without_the_policys_own_answer_is_an_error_that_names_the_column(tmp_path):
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    lm = lm_with(model_of("llama"))
    with pytest.raises(DataError, match="reference_response"):
        store_of(rows, SELM, lm)
    empty = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "reference_response": ""}])
    assert store_of(empty, SELM, lm).dropped == {"empty completion": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -0.1}, "allow_negative"),
        ({"alpha": 0.5}, "below 0.5"),
        ({"optimism_sample": "beam"}, "greedy, sample"),
        ({"samples": -1}, "0 or more"),
        ({"floor": 0.0}, "below 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        SelmOptions(**given)


def test_a_large_alpha_is_said_aloud_and_a_negative_one_is_a_control(caplog):
    SelmOptions(alpha=0.2)
    SelmOptions(alpha=-0.2, allow_negative=True)
    assert not caplog.records
    SelmOptions(alpha=0.3)
    assert "alpha 0.3 is large" in caplog.text


def test_forgetting_is_said_once(caplog):
    watch, state = DeltaWatch(), SimpleNamespace(global_step=7)
    for delta in (-3.0, -21.0, -40.0):
        watch.on_log(None, state, None, {DELTA: delta})  # type: ignore[arg-type]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "21 nats less likely" in caplog.text


def test_the_first_candidate_is_the_policys_own_answer_greedy_or_drawn():
    greedy = Selm(SelmOptions(samples=2), sampling=Sampling(max_tokens=5, temperature=0.7))
    assert [(d.temperature, d.n, d.max_tokens) for d in greedy.draws] == [(0.0, 1, 5), (0.7, 2, 5)]
    assert len(Selm().draws) == 1
    drawn = Selm(SelmOptions(samples=2, optimism_sample="sample"), sampling=Sampling(max_tokens=5, temperature=0.7))
    assert [(d.temperature, d.n) for d in drawn.draws] == [(0.7, 3)]
    assert greedy.answers == ("chosen", "rejected")


def sample(scores: list[float], ids: list[list[int]], finished: bool = True) -> dict[str, Any]:
    said = ["".join(map(chr, one)) for one in ids]
    return {
        "prompt": "p", "prompt_ids": [1], "completions": said, "completion_ids": ids, "scores": scores,
        "finished": [finished] * len(ids), "source": ["greedy", "sample", "sample"][: len(ids)],
        "logprobs": [[-0.5] * len(one) for one in ids],
    }  # fmt: skip


def test_best_and_worst_are_the_pair_and_the_own_answer_stands_beside_them():
    made = optimistic_pair(sample([0.2, 0.9, 0.1], [[65], [66], [67]], finished=False))
    assert made is not None
    assert (made["chosen"], made["rejected"], made["reference_response"]) == ("B", "C", "A")
    assert (made["chosen_ids"], made["reference_response_ids"]) == ([66], [65])
    assert made["reference_response_finished"] is False


@pytest.mark.parametrize("scores", [[0.3, 0.3, 0.3], [0.1, 0.9, 0.5]])
def test_a_tie_is_kept_as_the_own_answer_three_times(scores: list[float]):
    ids = [[65], [66], [67]] if len(set(scores)) == 1 else [[65], [65], [65]]
    made = optimistic_pair(sample(scores, ids))
    assert made is not None
    assert made["chosen_ids"] == made["rejected_ids"] == made["reference_response_ids"] == [65]


def test_what_became_of_the_own_answers_is_counted():
    rows = [sample([0.2, 0.9, 0.1], [[65], [66, 66], [67]]), sample([1.0, 1.0, 1.0], [[65]] * 3, finished=False)]
    rows += [sample([0.9, 0.3, 0.5], [[65], [66], [67]]), sample([0.0, 0.3, 0.5], [[65], [66], [67]])]
    expected = {"own_best": 0.25, "own_worst": 0.25, "ties": 0.25, "unfinished": 0.25}
    assert outcome(Dataset.from_list(rows)) == expected


def test_with_an_adapter_the_reference_is_the_policy_of_the_rounds_beginning_not_the_base(tmp_path):
    """`disable adapter` would be the policy before the first round for ever."""
    method = Selm(SelmOptions(samples=2, answers=(), alpha=0.1), DPO, Sampling(max_tokens=6))
    lm, judge = policy(), cast(Any, low_bytes)
    with Artifact.open(tmp_path / "run", kind="test") as artifact:
        settings = OnlineConfig(rounds=2, prompts_per_round=8, reference="previous")
        online(lm, prompts(), judge, method, settings, training(), out=artifact, seed=5)
        stored = {n: np.fromfile(artifact.checkpoints / f"reference-round-{n:03}.f32", np.float32) for n in (0, 1)}
        kept = [artifact.path / "rounds" / f"{n:03}" / "reference" for n in (0, 1)]
        for number, folder in enumerate(kept):
            earlier = policy()
            rows = Dataset.from_parquet(str(artifact.path / "rounds" / f"{number:03}" / "rows.parquet"))
            store = store_of(rows, method.objective, earlier)  # type: ignore[arg-type]
            base = ReferenceLogps(earlier, "fp32", None)._compute(pack(store, np.arange(len(store)))).numpy()
            adapted = _with_adapter(earlier, folder)
            batch = pack(store, np.arange(len(store)))
            again = ReferenceLogps(adapted, "fp32", None)._compute(batch).numpy()
            values = stored[number][batch.token]
            assert not np.isnan(values).any()
            np.testing.assert_allclose(again, values, atol=1e-5)
            assert (np.abs(base - values).max() > 1e-3) == (number == 1)


def _with_adapter(lm: Any, folder: Any) -> Any:
    return lm_with(PeftModel.from_pretrained(lm.model, str(folder)).eval())


def test_answers_that_are_cut_are_counted_by_their_names():
    """Beside a prompt of 9 tokens there is room for 5: B fits, A and C do not."""
    lm, rows = lm_with(model_of("llama")), Dataset.from_list([THREE, OWN_WINS, OWN_LOSES])
    assert store_of(rows, SELM, lm, max_length=14).cut == {"chosen": 3, "reference_response": 2}
    assert store_of(rows, OptimisticPairs(DPO, 0.0), lm, max_length=14).cut == {"chosen": 3}
    assert store_of(rows, SELM, lm, max_length=16).cut == {}
    full = store_of(rows, SELM, lm, max_length=9)
    assert (full.cut, full.dropped) == ({}, {"prompt fills max_length": 3})
