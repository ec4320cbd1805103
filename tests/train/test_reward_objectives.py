"""Scores of packed pairs are transformers' own of each text alone; losses, gradients and runs are trl's."""

import math
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from trl import RewardConfig, RewardTrainer

from maypole.core.errors import UserError
from maypole.data.chat import encode_whole
from maypole.data.pair_question import PairQuestion
from maypole.engine import Engine, Request
from maypole.models import LanguageModel, PeftOptions, load, packed_execution, save
from maypole.models.score_head import with_score_head
from maypole.train import BradleyTerry, BradleyTerryWithMargin, Completions, Objective, PairPreference, TokenBatch, fit
from maypole.train.batch import pack
from maypole.train.losses import bradley_terry, pair_preference
from maypole.train.step import loss_of
from tests.engine.engine_fixtures import EOS, lm_of
from tests.tiny_models import FAMILIES
from tests.train.train_fixtures import config, farthest, lines_of, passed, store_of

TEXTS = [
    ("Is it red?", " yes, quite red", " no"), ("", "a", "bb"), ("Say", "", " something"), ("Same", " s", " same"),
    ("Why?", " because of the wind", " because of the rain"), ("A longer question, with a clause:", " x", " yy"),
]  # fmt: skip
PAIRS = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]
CHATS = [
    {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": p + "?"}],
        "chosen": [{"role": "assistant", "content": c}],
        "rejected": [{"role": "assistant", "content": r}],
    }
    for p, c, r in TEXTS
]


def judge_of(family: str = "llama", **changes: Any) -> LanguageModel:
    """A tiny model with a score head that is far from zero."""
    lm = with_score_head(lm_of(family, **changes), seed=3)
    with torch.no_grad():
        lm.model.score.weight.mul_(20)
    return lm


class Scores(BradleyTerry):
    """Keeps what it was given."""

    seen: ClassVar[dict[str, torch.Tensor]] = {}

    def __call__(self, batch: TokenBatch) -> Any:
        Scores.seen = {name: batch.score(name).detach() for name in ("chosen", "rejected")}
        return super().__call__(batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["strings", "messages"])
def test_packed_scores_equal_transformers_on_each_text_alone(family: str, rows: list[dict]):
    lm = judge_of(family)
    lm.model.config.pad_token_id = None  # so that transformers reads the last token whatever it is
    data = Dataset.from_list(rows)
    store = store_of(data, Scores(), lm)
    everything = np.arange(len(store))
    with packed_execution(lm.model), torch.no_grad():
        loss_of(lm.model, pack(store, everything), Scores(), data, store.row_index, None, Counter())
    for name, found in Scores.seen.items():
        texts = [encode_whole(rows[i]["prompt"], rows[i][name], lm.tokenizer) for i in store.row_index]
        with torch.no_grad():
            wanted = torch.cat([lm.model(input_ids=torch.tensor([ids])).logits[:, 0] for ids in texts])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize("pad", ["a token of its own", "the end token"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_scores_equal_transformers_however_those_pad(pad: str, side: str):
    """transformers reads the last token that does not look like padding: one too early where the end token does. There
    the state is looked up by the length of the text, as it always is where texts are packed."""
    lm = judge_of()
    texts = [encode_whole(row["prompt"], row[name], lm.tokenizer) for row in PAIRS for name in ("chosen", "rejected")]
    found = [score for (score,) in Engine(lm).classify([Request(ids) for ids in texts])]
    token = EOS if pad == "the end token" else lm.tokenizer.pad_token_id
    assert (token in {ids[-1] for ids in texts}) == (pad == "the end token")
    longest = max(map(len, texts))
    gaps = [longest - len(ids) for ids in texts]
    padded = [[*[token] * gap, *ids] if side == "left" else [*ids, *[token] * gap] for ids, gap in zip(texts, gaps)]
    parts = [([0] * gap, [1] * len(ids)) for ids, gap in zip(texts, gaps)]
    seen = [[*gap, *text] if side == "left" else [*text, *gap] for gap, text in parts]
    mask, ids = torch.tensor(seen), torch.tensor(padded)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    lm.model.config.pad_token_id = token
    with torch.no_grad():
        states = lm.model.model(input_ids=ids, attention_mask=mask, position_ids=places).last_hidden_state
        theirs = lm.model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 0]
    ends = torch.tensor([longest - 1 if side == "left" else len(one) - 1 for one in texts])
    wanted = lm.model.score(states[torch.arange(len(texts)), ends])[:, 0]
    assert found == pytest.approx(wanted.tolist(), abs=1e-4)
    if pad == "a token of its own":
        assert found == pytest.approx(theirs.tolist(), abs=1e-4)
    else:
        assert max(abs(a - b) for a, b in zip(found, theirs.tolist())) > 1e-3  # what they would have said


def test_what_two_answers_begin_with_is_computed_once():
    lm = judge_of()
    store = store_of(Dataset.from_list(PAIRS[4:5]), BradleyTerry(), lm)
    batch = pack(store, np.array([0]))
    whole = [encode_whole(PAIRS[4]["prompt"], PAIRS[4][name], lm.tokenizer) for name in ("chosen", "rejected")]
    shared = len("Why? because of the ") + 1
    assert len(batch.input_ids) == len(whole[0]) + len(whole[1]) - shared
    assert batch.input_ids[batch.slot].tolist() == [EOS, EOS]


def test_bradley_terry_has_its_closed_form():
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([1.0, 1.0, 0.5]).double()
    margin = torch.tensor([0.0, 0.5, 1.0]).double()
    ahead = [1.0, -2.5, -1.0]
    wanted = [math.log1p(math.exp(-x)) for x in ahead]
    assert bradley_terry(chosen, rejected, margin).tolist() == pytest.approx(wanted, rel=1e-12)
    centred = bradley_terry(chosen, rejected, margin, center=0.1) - bradley_terry(chosen, rejected, margin)
    assert centred.tolist() == pytest.approx([0.9, 0.0, 0.1], abs=1e-12)
    moved = torch.tensor([5.0, -7.0, 0.0]).double()
    torch.testing.assert_close(
        bradley_terry(chosen + moved, rejected + moved, margin), bradley_terry(chosen, rejected, margin)
    )


def test_the_bradley_terry_optimum_is_the_logit_of_who_wins_how_often():
    wins = torch.tensor([[0, 8, 9], [2, 0, 6], [1, 4, 0]]).double()  # of 10 games each
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        total = (wins * bradley_terry(scores[:, None], scores[None, :])).sum()
        total.backward()
        return total

    optimizer.step(closure)
    expected = torch.sigmoid(scores[:, None] - scores[None, :]).detach()
    # At the maximum of the likelihood each player's wins are as many as expected (Zermelo's equations).
    torch.testing.assert_close(wins.sum(1), 10 * (expected.sum(1) - 0.5), atol=1e-5, rtol=0)


def test_the_fit_to_a_table_of_items_is_scikit_learns_logistic_regression():
    """On the difference design, 1 for the one item and -1 for the other; scores are known but for what all share."""
    draw = np.random.default_rng(0)
    true = draw.normal(size=6)
    met = draw.integers(0, 6, (400, 2))
    met = met[met[:, 0] != met[:, 1]]
    first = draw.random(len(met)) < 1 / (1 + np.exp(true[met[:, 1]] - true[met[:, 0]]))
    winner, loser = np.where(first, *met.T), np.where(first, *met.T[::-1])
    scores = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        total = bradley_terry(scores[winner], scores[loser]).sum()
        total.backward()
        return total

    optimizer.step(closure)
    design = np.eye(6)[met[:, 0]] - np.eye(6)[met[:, 1]]
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(design, first)
    found = scores.detach().numpy()
    assert found - found.mean() == pytest.approx(theirs.coef_[0] - theirs.coef_[0].mean(), abs=1e-4)


def test_pair_preference_is_the_mean_of_both_orders():
    first, second = torch.log(torch.tensor([0.5, 0.9])), torch.log(torch.tensor([0.5, 0.4]))
    assert pair_preference(first, second).tolist() == pytest.approx([math.log(2), -math.log(0.9 * 0.4) / 2])


def trl_trainer(lm: LanguageModel, rows: list[dict], tmp_path: Any, **changes: Any) -> RewardTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(tmp_path / "trl"), "per_device_train_batch_size": len(rows), "use_cpu": True, "bf16": False,
        "report_to": "none", "activation_checkpointing": False, "max_length": None, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1, "logging_strategy": "steps", **changes,
    }  # fmt: skip
    known = {name: value for name, value in settings.items() if name in RewardConfig.__dataclass_fields__}
    return RewardTrainer(
        model=lm.model, args=RewardConfig(**known), train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer
    )


MARGINS = [{**row, "margin": margin} for row, margin in zip(PAIRS, (0.0, 0.5, -1.0, 2.0, 0.25, 1.0))]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("objective", "rows", "options"),
    [
        (BradleyTerry(), PAIRS, {}),
        (BradleyTerry(), CHATS, {}),
        (BradleyTerry(center=0.01), PAIRS, {"center_rewards_coefficient": 0.01}),
        (BradleyTerryWithMargin(), MARGINS, {}),
    ],
    ids=["plain", "chats", "centred", "margins"],
)
def test_loss_and_gradients_equal_trls(objective: Objective, rows: list[dict], options: dict, family: str, tmp_path):
    lm = judge_of(family)
    lm.model.double()
    data = Dataset.from_list(rows)
    loss, gradients = passed(lm, data, objective)
    trainer = trl_trainer(lm, rows, tmp_path, **options)
    inputs = next(iter(trainer.get_train_dataloader()))
    mine = Counter(tuple(encode_whole(r["prompt"], r[n], lm.tokenizer)) for r in rows for n in ("chosen", "rejected"))
    theirs = [tuple(row[mask.bool()].tolist()) for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    assert Counter(theirs) == mine
    lm.model.zero_grad()
    value: Any = trainer.compute_loss(lm.model, inputs)
    value.backward()
    assert loss / len(rows) == pytest.approx(float(value.detach()), rel=1e-6)
    expected = {n: p.grad * len(rows) for n, p in lm.model.named_parameters() if p.grad is not None}
    assert farthest(gradients, expected) < 1e-6


def test_twenty_steps_have_the_losses_of_trls_run(tmp_path):
    steps, rate = 20, 1e-3
    theirs = judge_of("llama")
    trainer = trl_trainer(
        theirs, PAIRS, tmp_path, max_steps=steps, learning_rate=rate, weight_decay=0.0, lr_scheduler_type="linear"
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ours = judge_of("llama")
    wanted = config(max_steps=steps, learning_rate=rate, examples_per_step=len(PAIRS), tokens_per_batch=100)
    fit(ours, Dataset.from_list(PAIRS), BradleyTerry(), wanted, out=tmp_path / "ours")
    mine = [line["loss"] for line in lines_of(tmp_path / "ours")]
    assert len(mine) == steps
    assert mine[-1] < mine[0] / 2
    assert mine == pytest.approx(losses, rel=1e-3)


def test_a_trained_judge_is_what_transformers_loads(tmp_path):
    lm = judge_of("llama")
    fit(lm, Dataset.from_list(PAIRS), BradleyTerry(), config(), out=tmp_path / "judge")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "judge")
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id not in (None, EOS)
    texts = [torch.tensor(encode_whole(r["prompt"], r["chosen"], tokenizer)) for r in PAIRS]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id)
    with torch.no_grad():
        alone = torch.cat([lm.model(input_ids=t[None]).logits for t in texts])
        torch.testing.assert_close(model(padded, padded != tokenizer.pad_token_id).logits, alone, atol=1e-5, rtol=1e-5)


def test_an_adapter_brings_its_head_along(tmp_path):
    save(lm_of("llama"), tmp_path / "base")
    lm = with_score_head(load(tmp_path / "base"), seed=0)
    wanted = config(peft=PeftOptions(r=4))
    fit(lm, Dataset.from_list(PAIRS), BradleyTerry(), wanted, out=tmp_path / "judge")
    again = load(tmp_path / "judge", task="score")
    ids = torch.tensor([encode_whole("Is it", " so?", lm.tokenizer)])
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, lm.model(ids).logits)
        assert again.model(ids).logits.shape == (1, 1)
    assert again.tokenizer.pad_token_id is not None
    base = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "judge")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, lm.model(ids).logits)


def test_a_pad_token_never_ends_a_text():
    lm = lm_of("llama")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.transformer.config.pad_token_id = EOS
    made = with_score_head(lm, seed=0)
    assert made.transformer.config.pad_token_id == made.tokenizer.pad_token_id == lm.tokenizer.bos_token_id
    bare = lm_of("llama")
    bare.tokenizer.pad_token = bare.tokenizer.bos_token = None
    bare.transformer.config.pad_token_id = None
    made = with_score_head(bare, seed=0)
    assert made.transformer.config.pad_token_id is None
    loss, _ = passed(made, Dataset.from_list(PAIRS), BradleyTerry())  # packed, nothing is padded
    assert math.isfinite(loss)


def test_pairs_that_do_not_fit_are_left_out_whole():
    store = store_of(Dataset.from_list(PAIRS), BradleyTerry(), judge_of(), max_length=20)
    assert store.dropped == {"longer than max_length": 3}


def test_an_objective_and_a_head_that_do_not_belong_together_are_refused(tmp_path):
    rows = Dataset.from_list(PAIRS)
    with pytest.raises(UserError, match="BradleyTerry needs a score head"):
        fit(lm_of(), rows, BradleyTerry(), config(), out=tmp_path / "a")
    answers = rows.rename_column("chosen", "completion")
    with pytest.raises(UserError, match="Completions needs a head that predicts tokens"):
        fit(judge_of(), answers, Completions(), config(), out=tmp_path / "b")


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["strings", "messages"])
def test_a_pair_model_learns_the_letter_in_both_orders(rows: list[dict]):
    lm = lm_of("llama")
    objective = PairPreference(PairQuestion(chat=False))
    loss, gradients = passed(lm, Dataset.from_list(rows), objective)
    lm.model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        for first, second, letter in (("chosen", "rejected", 0), ("rejected", "chosen", 1)):
            ids, letters = objective.question.encode(row["prompt"], row[first], row[second], lm.tokenizer)
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
            total = total - torch.log_softmax(logits, -1)[letters[letter]] / 2
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert farthest(gradients, {n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None}) < 1e-5


def test_the_context_of_a_question_is_computed_once():
    lm = lm_of("llama")
    row = {"prompt": "x" * 100, "chosen": "good", "rejected": "bad"}
    store = store_of(Dataset.from_list([row]), PairPreference(), lm)
    assert store.unshared_tokens - store.tokens > 100


def test_the_question_is_written_as_its_authors_write_it():
    turns = [
        {"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"}, {"role": "user", "content": "U2"}
    ]  # fmt: skip
    words = PairQuestion().words(turns, "yes {b}", [{"role": "assistant", "content": "no"}])
    context = "\n\n<turn> user\n U1\n<turn> assistant\n A1\n<turn> user\n U2\n"
    assert words == f"[CONTEXT] {context} [RESPONSE A] yes {{b}} [RESPONSE B] no \n"
    assert PairQuestion().words("U1", "a", "b").startswith("[CONTEXT] \n\n<turn> user\n U1\n [RESPONSE A] a")


def test_letters_that_are_no_single_tokens_are_refused(tmp_path):
    with pytest.raises(UserError, match="as one token each"):
        PairQuestion(first="one", second="two").encode("p", "a", "b", lm_of().tokenizer)
    with pytest.raises(UserError, match="each blank once"):
        PairQuestion(text="{a} or {b}?")
    plain = lm_of().tokenizer
    plain.chat_template = None
    with pytest.raises(UserError, match="no template"):
        PairQuestion().encode("p", "a", "b", plain)
    asked = PairQuestion(text="{context}{a}|{b}:", first="1", second="2", chat=False)
    asked.write(tmp_path)
    assert PairQuestion.read(tmp_path) == asked
    (tmp_path / "pair_question.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        PairQuestion.read(tmp_path)
