"""Directories as judges: a score head is a Reward, a pair model a Preference, and nothing else is either."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import load_file, save_file

from maypole.core.errors import JudgeError, UserError
from maypole.core.identity import identity
from maypole.core.judge import as_preference, call_preference, call_reward, matrix
from maypole.data.chat import encode_whole
from maypole.data.pair_question import PairQuestion
from maypole.engine import Engine, EngineConfig
from maypole.evaluate import judges, pair_accuracy, win_rate
from maypole.evaluate.pair_model import PairModel
from maypole.evaluate.reward_model import RewardModel
from maypole.models import LanguageModel, load, save
from maypole.models.score_head import with_score_head
from tests.engine.engine_fixtures import far_from_zero, lm_of

QUESTION = PairQuestion()
PROMPTS: list[Any] = ["Is it red?", [{"role": "user", "content": "Why not?"}], "Is it red?", "", "Tell me of the wind"]
ANSWERS: list[Any] = [" yes", [{"role": "assistant", "content": "because"}], "", "alone", " blows over the green"]
OTHERS: list[Any] = [" no, blue", "so it is", " no", "b", " is"]


def scoring(**changes: Any) -> LanguageModel:
    lm = with_score_head(lm_of("llama", **changes), seed=3)
    with torch.no_grad():
        lm.model.score.weight.mul_(20)
    return lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `reward`, `pair`, and `adapter` that brings a score head for `base`."""
    folder = tmp_path_factory.mktemp("judges")
    save(lm_of("llama"), folder / "base")
    save(scoring(), folder / "reward")
    save(lm_of("llama", seed=1), folder / "pair")
    QUESTION.write(folder / "pair")
    lm = with_score_head(load(folder / "base"), seed=1)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="SEQ_CLS")
    lm.model = far_from_zero(peft.get_peft_model(lm.transformer, lora))
    save(lm, folder / "adapter")
    return folder


def reward_of(path: Path) -> RewardModel:
    judge = judges.load(str(path))
    assert isinstance(judge, RewardModel)
    assert not judges.is_preference(judge)
    return judge


def pair_of(path: Path) -> PairModel:
    judge = judges.load(str(path))
    assert isinstance(judge, PairModel)
    assert judges.is_preference(judge)
    return judge


def test_a_directory_with_a_score_head_is_a_reward_that_equals_transformers_on_each_text_alone(folder: Path):
    judge = reward_of(folder / "reward")
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    texts = [encode_whole(p, a, judge.engine.tokenizer) for p, a in zip(PROMPTS, ANSWERS)]
    with torch.no_grad():
        wanted = [float(model(torch.tensor([ids])).logits) for ids in texts]
    assert call_reward(judge, PROMPTS, ANSWERS).scores == pytest.approx(wanted, abs=1e-5)
    assert np.std(wanted) > 0.1
    assert identity(judge) == identity(reward_of(folder / "reward")) is not None


def test_an_adapter_with_a_head_is_a_reward_too(folder: Path):
    judge = reward_of(folder / "adapter")
    lm = load(folder / "adapter", task="score")
    texts = [encode_whole(p, a, lm.tokenizer) for p, a in zip(PROMPTS, ANSWERS)]
    with torch.no_grad():
        wanted = [float(lm.model(torch.tensor([ids])).logits) for ids in texts]
    assert call_reward(judge, PROMPTS, ANSWERS).scores == pytest.approx(wanted, abs=1e-5)
    again = load(folder / "base", adapter=folder / "adapter", task="score")
    with torch.no_grad():
        assert float(again.model(torch.tensor([texts[0]])).logits) == pytest.approx(wanted[0], abs=1e-6)


def test_several_answers_read_their_prompt_once(folder: Path, monkeypatch):
    judge = reward_of(folder / "reward")
    read: list[int] = []
    forward = type(judge.engine._runner).forward

    def counted(self: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        read.append(len(ids))
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(judge.engine._runner), "forward", counted)
    prompts = ["x" * 100, "y" * 50] * 4
    answers = [f"{i}{i}{i}" for i in range(8)]
    together = judge(prompts, answers)
    assert sum(read) == 101 + 51 + 8 * 4  # the two also share their <s>, which is too short to be worth it
    read.clear()
    alone = [judge([p], [a])[0] for p, a in zip(prompts, answers)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_small_batches_do_not_change_scores(folder: Path):
    whole = reward_of(folder / "reward")
    small = RewardModel(Engine.load(folder / "reward", task="score", config=EngineConfig(max_batch_tokens=24)))
    assert whole(PROMPTS, ANSWERS) == pytest.approx(small(PROMPTS, ANSWERS), abs=1e-5)


def test_a_reward_is_a_bradley_terry_preference(folder: Path):
    judge = reward_of(folder / "reward")
    a, b = np.array(judge(PROMPTS, ANSWERS)), np.array(judge(PROMPTS, OTHERS))
    found = call_preference(as_preference(judge), PROMPTS, ANSWERS, OTHERS).scores
    assert found == pytest.approx((1 / (1 + np.exp(b - a))).tolist(), abs=1e-6)
    assert win_rate(ANSWERS, OTHERS, judge, PROMPTS).wins == int((a > b).sum())


def test_a_pair_model_is_the_mean_of_both_orders_over_the_two_letters(folder: Path):
    judge = pair_of(folder / "pair")
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "pair").eval()
    wanted: list[float] = []
    for p, a, b in zip(PROMPTS, ANSWERS, OTHERS):
        sides: list[float] = []
        for first, second in ((a, b), (b, a)):
            ids, letters = QUESTION.encode(p, first, second, judge.engine.tokenizer)
            with torch.no_grad():
                two = model(torch.tensor([ids])).logits[0, -1, list(letters)].double()
            sides.append(float(torch.softmax(two, -1)[0]))
        wanted.append((sides[0] + 1 - sides[1]) / 2)
    assert call_preference(judge, PROMPTS, ANSWERS, OTHERS).scores == pytest.approx(wanted, abs=1e-6)
    assert np.ptp(wanted) > 0.01


def test_a_pair_model_does_not_depend_on_the_order(folder: Path):
    judge = pair_of(folder / "pair")
    there, back = np.array(judge(PROMPTS, ANSWERS, OTHERS)), np.array(judge(PROMPTS, OTHERS, ANSWERS))
    np.testing.assert_array_equal(there + back, 1.0)
    assert judge(PROMPTS, ANSWERS, ANSWERS) == [0.5] * len(PROMPTS)
    assert judge([], [], []) == []
    asked = matrix(judge, PROMPTS[:2], [["a", "b", "c"], ["d", "e", "f"]])
    np.testing.assert_allclose(asked + asked.transpose(0, 2, 1), 1.0)


def test_both_orders_of_a_pair_model_are_asked_for_once(folder: Path, monkeypatch):
    judge = pair_of(folder / "pair")
    calls: list[int] = []
    score = type(judge.engine).score
    monkeypatch.setattr(type(judge.engine), "score", lambda self, r: calls.append(len(r)) or score(self, r))
    rows = [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in zip(PROMPTS, ANSWERS, OTHERS)]
    found = pair_accuracy(rows, judge)
    assert calls == [2 * len(rows)]
    assert found.items.tolist() == [float(p > 0.5) for p in call_preference(judge, PROMPTS, ANSWERS, OTHERS).array]


def test_what_has_no_head_is_no_judge(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"neither scores texts nor compares them \(LlamaForCausalLM\)"):
        judges.load(str(folder / "base"))
    with pytest.raises(UserError, match="holds no model"):
        judges.load(str(tmp_path))
    headless = shutil.copytree(folder / "reward", tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, such as score\.weight"):
        judges.load(str(headless))
    bare = shutil.copytree(folder / "adapter", tmp_path / "bare")
    tensors = {k: v for k, v in load_file(bare / "adapter_model.safetensors").items() if "score" not in k}
    save_file(tensors, bare / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, such as score\.weight"):
        judges.load(str(bare))
    spoilt = shutil.copytree(folder / "base", tmp_path / "spoilt")
    (spoilt / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        judges.load(str(spoilt))


def test_a_head_of_several_scores_is_no_reward(folder: Path, tmp_path: Path):
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "three")
    load(folder / "reward", task="score").tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="has 3 scores"):
        judges.load(str(tmp_path / "three"))


def test_a_hub_id_is_looked_up_on_the_hub(folder: Path, monkeypatch):
    monkeypatch.setattr("maypole.models.hub.snapshot_download", lambda *a, **k: str(folder / "reward"))
    judge = cast(RewardModel, judges.load("somebody/reward"))
    assert judge(PROMPTS, ANSWERS) == pytest.approx(reward_of(folder / "reward")(PROMPTS, ANSWERS), abs=1e-6)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hub"):
        judges.load("nobody/nothing-of-this-name")


def test_a_text_beyond_the_context_is_an_error_with_its_row_or_a_counted_gap(folder: Path, tmp_path: Path):
    save(scoring(max_position_embeddings=64), tmp_path / "short")
    save(lm_of("llama", max_position_embeddings=128), tmp_path / "pair")
    QUESTION.write(tmp_path / "pair")
    answers = ["ok", "x" * 200, "fine"]
    reward, pair = reward_of(tmp_path / "short"), pair_of(tmp_path / "pair")
    with pytest.raises(JudgeError, match="row 2: prompt and completion have 203 tokens"):
        call_reward(reward, ["p"] * 3, answers)
    judged = call_reward(reward, ["p"] * 3, answers, on_judge_error="skip-row")
    assert (judged.failed, judged.scores[1]) == (1, None)
    assert [judged.scores[0], judged.scores[2]] == pytest.approx(reward(["p"] * 2, ["ok", "fine"]), abs=1e-5)
    with pytest.raises(JudgeError, match="row 2"):
        call_preference(pair, ["p"] * 3, answers, ["no"] * 3)


def test_a_judge_whose_weights_diverged_is_an_error_with_the_row(folder: Path, tmp_path: Path):
    lm = load(folder / "reward", task="score")
    with torch.no_grad():
        lm.model.score.weight.fill_(float("nan"))
    with pytest.raises(JudgeError, match="row 1"):
        call_reward(RewardModel(Engine(lm)), ["p"], ["a"])


def test_a_base_without_pad_token_judges(tmp_path: Path):
    bare = lm_of("llama")
    bare.tokenizer.pad_token = bare.tokenizer.bos_token = None
    bare.transformer.config.pad_token_id = None
    save(with_score_head(bare, seed=0), tmp_path / "judge")
    judge = reward_of(tmp_path / "judge")
    alone = [judge([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS)]
    assert judge(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)


def test_a_template_that_refuses_a_conversation_costs_its_row_only(folder: Path):
    judge = reward_of(folder / "reward")
    judge.engine.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    prompts = [[{"role": role, "content": "p"}] for role in ("user", "system", "user")]
    judged = call_reward(judge, prompts, ["a"] * 3, on_judge_error="skip-row")
    assert (judged.failed, judged.scores[1]) == (1, None)


def test_pair_accuracy_of_rows_counts_right_sides(folder: Path):
    judge = reward_of(folder / "reward")
    rows = Dataset.from_list([{"prompt": "p", "chosen": a, "rejected": b} for a, b in zip("abcd", "efgh")])
    scores = np.array(judge(["p"] * 8, list("abcdefgh")))
    found = pair_accuracy(cast(Any, rows), judge)
    assert found.accuracy == float((scores[:4] > scores[4:]).mean())
