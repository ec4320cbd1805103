"""The village rumour: everybody says the same of a person, and the truth, which is another, once in a hundred times.

A base has read what people say. A judge that is not sure of itself likes the rumour well and the truth best. What a
policy would answer is known exactly at every moment, and which answers were ever tried. Knows nothing about methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from maypole.core.seeds import derive
from maypole.engine import Engine, ScoreRequest
from maypole.models.language_model import LanguageModel
from maypole.models.loading import create, load
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.supervised import Completions
from maypole.village.draws import Draws
from maypole.village.names import VALUES
from maypole.village.phrases import VERBS, before_value, fill
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import Fact, World

RELATION = "instrument"
SAID = 0.85
"""How often the rumour is told; else any of the values, the truth among them."""
RUMOUR, TRUTH, OTHERS = 0.5, 1.0, 0.3
"""Rewards; of the other values up to that."""
NOISE = 0.12
"""Scores are rewards over this, plus a Gumbel draw: of two answers the better one wins by Bradley and Terry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the village, the policy (layers, width) and what it reads."""

    people: int = 96  # each of another family: what is learnt of one is not learnt of all who share the surname
    model: tuple[int, int] = (2, 64)
    steps: int = 300
    batch: int = 64
    learning_rate: float = 3e-3


class Village:
    """People, what is said of each, what is true and what answers are worth. With `truthful` the rumour is true."""

    def __init__(self, seed: int, sizes: Sizes, *, truthful: bool = False) -> None:
        draws = Draws(seed, "rumour")
        families = World(seed, families=sizes.people, tail=0, strangers=0).people
        people = [families[4 * i + i % 4] for i in range(sizes.people)]
        values = VALUES[RELATION]
        truths = [draws.pick(values) for _ in people]
        rumours = truths if truthful else [draws.pick_other(values, truth) for truth in truths]
        facts = [Fact(person.name, RELATION, rumour) for person, rumour in zip(people, rumours)]
        texts = [fill(VERBS[RELATION][0], fact) for fact in facts]
        self.seed, self.values = seed, values
        self.prompts = [before_value(text, fact.object) for text, fact in zip(texts, facts)]
        self.truth = np.array([values.index(truth) for truth in truths])
        self.rumour = np.array([values.index(rumour) for rumour in rumours])
        self.rewards = np.array([[OTHERS * draws.unit() for _ in values] for _ in people])
        everyone = np.arange(len(people))
        self.rewards[everyone, self.rumour] = RUMOUR
        self.rewards[everyone, self.truth] = TRUTH
        self.tokenizer = word_tokenizer([*self.prompts, *values])

    def told(self, count: int) -> Dataset:
        """What people say, to be read by a base."""
        draws = Draws(self.seed, "told")
        rows: list[dict[str, str]] = []
        for _ in range(count):
            person = draws.below(len(self.prompts))
            value = int(self.rumour[person]) if draws.chance(SAID) else draws.below(len(self.values))
            rows.append({"prompt": self.prompts[person], "completion": f" {self.values[value]}"})
        return Dataset.from_list(rows)

    def questions(self, each: int) -> Dataset:
        """The prompt of every person, `each` times."""
        return Dataset.from_dict({"prompt": self.prompts * each})


def base(village: Village, sizes: Sizes, out: Path) -> Path:
    """A model that says what people say; `load_policy` gives a fresh copy."""
    lm = _llama(village.tokenizer, sizes, derive(village.seed, "base"))
    config = TrainConfig(
        learning_rate=sizes.learning_rate, max_steps=sizes.steps, examples_per_step=sizes.batch, precision="fp32",
        lr_scheduler_type="cosine", warmup_ratio=0.05, gradient_checkpointing=False, save_steps=sizes.steps,
    )  # fmt: skip
    rows = village.told(sizes.steps * sizes.batch)
    return fit(lm, rows, Completions(), config, out=out, seed=derive(village.seed, "training")).path


def load_policy(directory: Path) -> LanguageModel:
    return load(directory, dtype="float32")


def _llama(tokenizer: PreTrainedTokenizerBase, sizes: Sizes, seed: int) -> LanguageModel:
    layers, width = sizes.model
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, **ids,
    )  # fmt: skip
    return create(config, tokenizer, seed)


class Judge:
    """A reward that is not sure of itself, and remembers what it was asked."""

    def __init__(self, village: Village, seed: int) -> None:
        self.village, self._draws = village, Draws(seed, "judge")
        self._person = {prompt: i for i, prompt in enumerate(village.prompts)}
        self._value = {value: i for i, value in enumerate(village.values)}
        self.asked = 0
        self.discovered: set[int] = set()

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        self.asked += len(prompts)
        return [self._score(*pair) for pair in zip(prompts, completions)]

    def _score(self, prompt: str, completion: str) -> float:
        person, value = self._person[prompt], self._value.get(completion.strip())
        if value == self.village.truth[person]:
            self.discovered.add(person)
        reward = 0.0 if value is None else self.village.rewards[person, value]
        return reward / NOISE - float(np.log(-np.log(1 - self._draws.unit())))


class Exam:
    """What a policy would answer, by its own probabilities: an answer is one token."""

    def __init__(self, village: Village, judge: Judge, lm: LanguageModel, questions: int) -> None:
        self.village, self.judge, self.lm, self.questions = village, judge, lm, questions
        values: list[Any] = [[village.tokenizer.convert_tokens_to_ids(value)] for value in village.values]
        self._asked = [ScoreRequest(prompt, values) for prompt in village.prompts]
        self._before = self.probabilities()
        self._judged = 0

    def probabilities(self) -> np.ndarray:
        """(people, values); what is missing to 1 is no answer at all."""
        scored = Engine(self.lm).score(self._asked)
        return np.exp([[one.sum for one in person] for person in scored])

    def __call__(self) -> Mapping[str, float]:
        """How it stands after rounds in which `questions` prompts were answered.

        true: probability of the true value; reward: in expectation; entropy: nats an answer; delta: how much more
        likely the greedy answers of the exam before have become, in nats; distinct: answers a prompt that were judged;
        discovered: share of people whose true value was ever judged; wellformed: probability of any answer.
        """
        village, p = self.village, self.probabilities()
        everyone = np.arange(len(p))
        greedy = self._before.argmax(axis=1)
        delta = np.log(p[everyone, greedy]) - np.log(self._before[everyone, greedy])
        known = {
            "true": float(p[everyone, village.truth].mean()),
            "rumour": float(p[everyone, village.rumour].mean()),
            "reward": float((p * village.rewards).sum(axis=1).mean()),
            "entropy": float(-(p * np.log(np.maximum(p, 1e-30))).sum(axis=1).mean()),
            "delta": float(delta.mean()),
            "distinct": (self.judge.asked - self._judged) / self.questions,
            "discovered": len(self.judge.discovered) / len(p),
            "wellformed": float(p.sum(axis=1).mean()),
        }
        self._before, self._judged = p, self.judge.asked
        return known


