"""Instructions, judges and a checker for tests of FLAME, on a tiny random model."""

from typing import Any

from datasets import Dataset

from maypole.align.flame_options import FlameConfig
from maypole.align.self_writing import Writing
from maypole.core.identity import digest
from maypole.engine import Engine
from maypole.evaluate.factuality import AtomicChecker, FactReward
from maypole.models.language_model import LanguageModel
from tests.align.online_fixtures import low_bytes, training
from tests.engine.engine_fixtures import VOCABULARY
from tests.tiny_models import model_of
from tests.train.train_fixtures import lm_with

WRITING = Writing(demonstrations=2, samples=3, max_tokens=6, temperature=1.0)


def base(**changes: Any) -> LanguageModel:
    return lm_with(model_of("llama", **{"vocab_size": VOCABULARY, "max_position_embeddings": 1024, **changes}))


def instructions(count: int = 8) -> Dataset:
    """Every other one asks for facts."""
    asked = [f"Who keeps the {i} bees?" if i % 2 else f"Ring {i} times" for i in range(count)]
    rows = {"prompt": asked, "completion": [f" answer {i}" for i in range(count)]}
    dataset = Dataset.from_dict(rows)
    dataset._fingerprint = digest("instructions", repr(rows))
    return dataset


def who(prompts: list[str]) -> list[bool]:
    return [prompt.startswith("Who") for prompt in prompts]


def never(prompts: list[str]) -> list[bool]:
    return [False] * len(prompts)


def always(prompts: list[str]) -> list[bool]:
    return [True] * len(prompts)


def halves(topics: list[str], texts: list[str]) -> list[list[str]]:
    """Two facts an answer, which are its halves."""
    return [[text[: len(text) // 2], text[len(text) // 2 :]] for text in texts]


def even(facts: list[str], evidence: list[list[str]]) -> list[bool]:
    return [sum(fact.encode()) % 2 == 0 for fact in facts]


def some(query: str, k: int) -> list[str]:
    return ["a passage"]


CHECKER = AtomicChecker(halves, even, some)
TRUTH = FactReward(CHECKER)


def score(prompts: list, completions: list, **columns: Any) -> list[float]:
    return low_bytes(prompts, completions)


def config(**changes: Any) -> FlameConfig:
    train = training(examples_per_step=4, max_steps=3, save_steps=2)
    given: dict[str, Any] = {
        "demonstrations": 2, "samples": 2, "n": 3, "max_tokens": 6, "sft": train,
        "dpo": training(examples_per_step=4, max_steps=3, save_steps=2, peft=None),
    }  # fmt: skip
    return FlameConfig(**{**given, **changes})


def engine() -> Engine:
    return Engine(base())
