"""Prompts, judges and methods for tests of the online loop, on a tiny random model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset

from maypole.align.config import OnlineConfig
from maypole.align.online import online
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.core.identity import digest
from maypole.engine import Sampling
from maypole.models.language_model import LanguageModel
from maypole.models.peft_options import PeftOptions
from maypole.train.config import TrainConfig
from tests.engine.engine_fixtures import VOCABULARY
from tests.tiny_models import model_of
from tests.train.train_fixtures import config as train_config
from tests.train.train_fixtures import lm_with

LORA = PeftOptions(r=4, lora_alpha=8)
LEARNERS: dict[str, Any] = {"adapter": {"peft": LORA}, "all weights": {"peft": None, "learning_rate": 1e-3}}
SAMPLING = Sampling(n=3, max_tokens=6)


def policy(family: str = "llama", seed: int = 0) -> LanguageModel:
    return lm_with(model_of(family, seed, vocab_size=VOCABULARY))


def prompts(count: int = 8, **columns: list[Any]) -> Dataset:
    rows = {"prompt": [f"{i} ribbons and" for i in range(count)], **columns}
    dataset = Dataset.from_dict(rows)
    dataset._fingerprint = digest("prompts", repr(rows))
    return dataset


def given_pairs(count: int = 5, **changes: Any) -> Dataset:
    rows = {
        "prompt": [f"{i} poles and" for i in range(count)], "chosen": [" ribbons"] * count,
        "rejected": [" nothing"] * count, **changes,
    }  # fmt: skip
    dataset = Dataset.from_dict(rows)
    dataset._fingerprint = digest("pairs", repr(rows))
    return dataset


def low_bytes(prompts: list, completions: list, **columns: Any) -> list[float]:
    """A reward that tells almost any two answers apart."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [-sum(text.encode()) / (1 + len(text.encode())) for text in texts]


def prefers(prompts: list, a: list, b: list, **columns: Any) -> list[float | None]:
    """A preference that agrees with `low_bytes`, and likes first places."""
    return [0.9 if x > y else 0.2 if x < y else 0.5 for x, y in zip(low_bytes(prompts, a), low_bytes(prompts, b))]


def training(**changes: Any) -> TrainConfig:
    given: dict[str, Any] = {"max_steps": -1, "learning_rate": 1e-2, "save_steps": 2, "peft": LORA}
    return train_config(**{**given, **changes})


def run(
    out: Path,
    *,
    judge: Any = low_bytes,
    method: Any = None,
    lm: LanguageModel | None = None,
    rows: Dataset | None = None,
    train: TrainConfig | None = None,
    eval_prompts: Dataset | None = None,
    first_history: Dataset | None = None,
    **changes: Any,
) -> tuple[Any, LanguageModel]:
    lm = lm or policy()
    settings = replace(OnlineConfig(rounds=3, prompts_per_round=8), **changes)
    method = method or IterativeDPO(sampling=SAMPLING)
    rows = prompts() if rows is None else rows
    train = train or training()
    made = online(
        lm, rows, judge, method, settings, train, out=out, seed=5, eval_prompts=eval_prompts,
        first_history=first_history,
    )  # fmt: skip
    return made, lm


def samples_of(out: Path, round: int) -> list[dict[str, Any]]:
    return pq.read_table(out / "rounds" / f"{round:03}" / "samples.parquet").to_pylist()


def rows_of(out: Path, round: int) -> list[dict[str, Any]]:
    return pq.read_table(out / "rounds" / f"{round:03}" / "rows.parquet").to_pylist()
