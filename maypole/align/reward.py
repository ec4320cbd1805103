"""A judge learnt from pairs: a score for each answer (Bradley-Terry), or which of two answers is better (2405.07863).

What the trained model is worth on pairs that it has not seen is measured before it is handed on. How a directory is
read as a judge is `maypole.evaluate.judges`'s business.
"""

import json
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.seeds import derive
from maypole.data.pair_question import PairQuestion
from maypole.engine import Engine
from maypole.evaluate.judges import check_one_score
from maypole.evaluate.pair_accuracy import Accuracy, pair_accuracy
from maypole.evaluate.pair_model import PairModel
from maypole.evaluate.reward_model import RewardModel
from maypole.models.adapters import merged
from maypole.models.language_model import LanguageModel
from maypole.models.saving import save
from maypole.models.score_head import has_score_head, with_score_head
from maypole.train.config import TrainConfig
from maypole.train.objective import Objective
from maypole.train.ranks import ALONE, Ranks
from maypole.train.reward import BradleyTerry, BradleyTerryWithMargin, PairPreference
from maypole.train.source import longest_row, nonempty

Type = Literal["bradley-terry", "pair"]


def untrained(
    lm: LanguageModel, type: Type, *, seed: int, keep_base: Artifact | None = None, ranks: Ranks = ALONE
) -> LanguageModel:
    """`lm` as the judge it is to become: under a fresh score head, or as it is. One that scores already goes on.

    An adapter of `lm` is merged first where there is to be a score head; `keep_base` keeps what that makes as its
    ``base/``, for an adapter on top to name.
    """
    if has_score_head(lm.model):
        if type == "pair":
            expected = "a language model, or --type bradley-terry"
            raise UserError("a model that scores texts names no better one of two", lm.name, expected)
        check_one_score(lm, lm.name)
        return lm
    if type == "pair":
        return lm
    if lm.adapters:
        lm = merged(lm)
        if keep_base is not None:
            ranks.lead(lambda: save(lm, keep_base.path / "base"))
            lm.name = str(keep_base.out.absolute() / "base")
    return with_score_head(lm, seed=seed)


def objective_of(type: Type, rows: Dataset, lm: LanguageModel, *, center: float = 0.0) -> Objective:
    """What such a judge learns from `rows`; their column `margin` counts where they have one."""
    if type == "pair":
        return PairPreference(PairQuestion(chat=bool(lm.tokenizer.chat_template)))
    return (BradleyTerryWithMargin if "margin" in rows.column_names else BradleyTerry)(center)


def hold_out(rows: Dataset, share: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to learn from, and about a `share` of all to measure on: no prompt is in both.

    Which prompts are held out depends on them and the seed, not on what else is in the data.
    """
    kept: dict[str, bool] = {}
    held: list[bool] = []
    for row in rows.select_columns(["prompt"]):
        prompt = json.dumps(row["prompt"], sort_keys=True)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if prompt not in kept:
            kept[prompt] = derive(seed, "held out", prompt) % 2**32 < share * 2**32
        held.append(kept[prompt])
    chosen = np.array(held)
    if chosen.sum() < 2 or chosen.all():
        what = f"{int(chosen.sum())} of {len(rows)} pairs would be held out to measure on"
        raise UserError(what, "--held-out", "a larger share, more pairs, or --eval-data")
    return rows.select(np.flatnonzero(~chosen)), rows.select(np.flatnonzero(chosen))


def measure(lm: LanguageModel, rows: Dataset, objective: Objective, config: TrainConfig, *, seed: int) -> Accuracy:
    """How often the judge that `lm` has become prefers the chosen answer; pairs beyond its context are left out."""
    readable = rows.select(nonempty(rows, objective, lm, longest_row(lm, config), "the pairs to measure on").row_index)
    found = pair_accuracy(list(readable), judge_of(lm, objective), seed=seed)  # pyright: ignore[reportArgumentType]
    return Accuracy(found.items, found.interval, found.left_out + len(rows) - len(readable))


def judge_of(lm: LanguageModel, objective: Objective) -> RewardModel | PairModel:
    """A model in memory that was trained by `objective`, as a judge."""
    engine = Engine(lm)
    return PairModel(engine, objective.question) if isinstance(objective, PairPreference) else RewardModel(engine)


def facts(accuracy: Accuracy) -> dict[str, Any]:
    """What belongs into the manifest and onto the card."""
    interval = accuracy.interval
    return {
        "pair_accuracy": accuracy.accuracy,
        "pair_accuracy_low": interval.low,
        "pair_accuracy_high": interval.high,
        "held_out_pairs": len(accuracy.items),
        "held_out_pairs_left_out": accuracy.left_out,
    }


def describe(artifact: Artifact, objective: Objective) -> None:
    """Beside the weights: the question of a pair model, and on the card how to ask the judge."""
    name, card = artifact.out.name, artifact.path / "README.md"
    lines = ["", "## As a judge", ""]
    if isinstance(objective, PairPreference):
        objective.question.write(artifact.path)
        lines += ["It compares two answers, in both orders, by the question in `pair_question.json`."]
    else:
        lines += ["It scores one answer; only differences between answers to one prompt mean something."]
        if (artifact.path / "adapter_config.json").is_file():
            lines += ["transformers loads its base with `AutoModelForSequenceClassification` and `num_labels=1`."]
    lines += ["", "```", f"maypole evaluate winrate --data answers.jsonl --judge {name}", "```", ""]
    card.write_text(card.read_text() + "\n".join(lines))
