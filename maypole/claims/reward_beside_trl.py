"""A reward model trained by packed steps and by trl's RewardTrainer: the same weights at first, the same pairs in one
order, as many steps.

Knows nothing about what reward models are used for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from maypole.claims.descriptions import Corner, Schooling, first_policy
from maypole.claims.effects import Effect
from maypole.claims.learnt_judge import Learning, labelled, told_contests
from maypole.core.errors import MissingExtra
from maypole.core.seeds import derive
from maypole.engine import Engine
from maypole.evaluate.pair_accuracy import pair_accuracy
from maypole.evaluate.reward_model import RewardModel
from maypole.models.language_model import LanguageModel
from maypole.models.score_head import with_score_head
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.reward import BradleyTerry
from maypole.village.describe import oracle
from maypole.village.draws import Draws

APART = 0.01
"""A point of held-out accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """`pairs` fill their steps, so that both pass over them in the same steps."""

    schooling: Schooling = Schooling()
    pairs: int = 125 * 64
    unseen: int = 2_000
    learning: Learning = Learning(steps=400)


def reward(seed: int, workdir: Path, course: Course = Course()) -> list[Effect]:
    """Held-out accuracy of both, and that they have learnt something."""
    corner, draws = Corner(seed), Draws(seed, "compared")
    start = with_score_head(first_policy(corner, seed, workdir / "first", course.schooling), seed=derive(seed, "head"))
    contests = told_contests(corner, draws, course.pairs + course.unseen)
    pairs = labelled(contests, oracle(corner, "length-biased"), draws)
    seen, unseen = pairs.select(range(course.unseen, len(pairs))), pairs.select(range(course.unseen))
    ours, theirs = start.copy(), start.copy()
    learning = course.learning
    config = TrainConfig(
        learning_rate=learning.learning_rate, max_steps=learning.steps, lr_scheduler_type="cosine", shuffle=False,
        examples_per_step=learning.examples_per_step, precision="fp32", save_steps=learning.steps,
    )  # fmt: skip
    fit(ours, seen, BradleyTerry(), config, out=workdir / "ours", seed=seed)
    by_trl(theirs, seen, learning, workdir / "trl")
    mine, other, before = (_accuracy(lm, unseen, seed) for lm in (ours, theirs, start))
    metric = "accuracy on unseen pairs"
    return [
        Effect("as good as trl's", metric, mine, other, -APART, "difference>="),
        Effect("no better than trl's", metric, mine, other, APART, "difference<="),
        Effect("both have learnt", f"{metric}, and before", min(mine, other), before, 0.05, "difference>=", True),
    ]


def by_trl(lm: LanguageModel, pairs: Dataset, learning: Learning, folder: Path) -> None:
    """Train `lm` with trl's own trainer, in its memory."""
    try:
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise MissingExtra("test") from error
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": learning.steps, "learning_rate": learning.learning_rate,
        "per_device_train_batch_size": learning.examples_per_step, "lr_scheduler_type": "cosine", "weight_decay": 0.0,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "train_sampling_strategy": "sequential",
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "max_length": None,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = RewardTrainer(
        model=lm.model, args=RewardConfig(**settings), train_dataset=pairs, processing_class=lm.tokenizer
    )  # fmt: skip
    trainer.train()
    lm.model.eval()


def _accuracy(lm: LanguageModel, pairs: Dataset, seed: int) -> float:
    return pair_accuracy(pairs.to_list(), RewardModel(Engine(lm)), seed=seed).accuracy
