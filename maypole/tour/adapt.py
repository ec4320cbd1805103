"""Stage 2: the base learns the corpus, then instructions, and keeps what it knew. Knows nothing about reports.

All weights with replay of the base's own pretraining mix where that is known (the default base), else a LoRA: nobody
has the data a user's model was trained on, so what it forgot is measured beside what it learnt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from maypole.core.artifact import Artifact
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.data.chat import encode_text
from maypole.data.rows import CHAT
from maypole.models.language_model import LanguageModel
from maypole.models.peft_options import PeftOptions
from maypole.tour.corpus import Corpus
from maypole.tour.plan import EXAMPLES_PER_STEP, REPLAY_SHARE, length_of
from maypole.tour.skills import instructions
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Objective
from maypole.train.result import save_result
from maypole.train.supervised import Chats, Completions, LanguageModeling
from maypole.village.mix import base_mix
from maypole.village.prose import prose
from maypole.village.world import World
from maypole.village.zoo import PretrainingMix

HELD_OUT_FOR_CURVE = 40


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tour trains: all weights of its own base, or a LoRA on a user's."""

    learning_rate: float
    instruction_rate: float
    peft: PeftOptions | None


def recipe(lm: LanguageModel, own_base: bool) -> Recipe:
    """Rates as measured for the small base; for other models by width."""
    if own_base:
        return Recipe(5e-4, 3e-4, None)
    wide = int(lm.transformer.config.hidden_size) >= 512
    return Recipe(2e-4 if wide else 2e-3, 1e-4 if wide else 1e-3, PeftOptions(r=16, lora_alpha=32))


def adapt(
    lm: LanguageModel,
    corpus: Corpus,
    plan: dict[str, Any],
    artifact: Artifact,
    *,
    own_base: bool,
    seed: int,
    teach: bool,
) -> None:
    """Train `lm` in place; the artifact's root becomes the trained checkpoint or adapter, its parts both runs."""
    how = recipe(lm, own_base)
    length = length_of(lm)
    rows, objective = _corpus_rows(lm, corpus, plan["corpus_rows"], length, own_base, seed)
    curve = corpus.held_out.select(range(min(HELD_OUT_FOR_CURVE, len(corpus.held_out))))
    steps = max(2, len(rows) // EXAMPLES_PER_STEP)
    config = TrainConfig(
        learning_rate=how.learning_rate, examples_per_step=EXAMPLES_PER_STEP, max_length=length, max_steps=steps,
        lr_scheduler_type="warmup_stable_decay", warmup_ratio=0.05,
        lr_scheduler_kwargs={"num_decay_steps": max(1, steps // 2), "min_lr_ratio": 0.05, "decay_type": "linear"},
        peft=how.peft, save_steps=max(10, steps // 10), eval_steps=max(1, steps // 8), logging_steps=max(1, steps // 40),
    )  # fmt: skip
    evaluation: Any = _as_documents(curve, lm) if own_base else curve
    fit(lm, rows, objective, config, out=artifact.path / "corpus", seed=derive(seed, "corpus"), eval_rows=evaluation)
    if teach:
        taught, kind = instructions(lm, plan["instruction_rows"], seed)
        steps = max(2, len(taught) // EXAMPLES_PER_STEP)
        second = TrainConfig(
            learning_rate=how.instruction_rate, examples_per_step=EXAMPLES_PER_STEP, max_length=length,
            max_steps=steps, warmup_ratio=0.05, save_steps=max(10, steps // 10), logging_steps=max(1, steps // 40),
        )  # fmt: skip
        mixed, chosen = _with_replay(lm, taught, rows, own_base, seed) if own_base else (taught, None)
        goal: Objective = chosen or (Chats() if kind is CHAT else Completions())
        fit(lm, mixed, goal, second, out=artifact.path / "instructions", seed=derive(seed, "instructions"))
    save_result(lm, artifact, {"steps": steps})


def _corpus_rows(
    lm: LanguageModel, corpus: Corpus, count: int, length: int, own_base: bool, seed: int
) -> tuple[Dataset, Objective]:
    """Corpus rows, with replay where the base's own mix is known; `count` counts rows of the corpus alone."""
    if not own_base:
        passes = -(-count // max(1, len(corpus.train)))
        order = [i % len(corpus.train) for i in range(min(count, passes * len(corpus.train)))]
        return corpus.train.select(order), LanguageModeling()
    documents = _as_documents(corpus.train, lm, length)
    ids = [documents["ids"][i % len(documents)] for i in range(count)]
    tokens = sum(len(row) for row in ids)
    replay = list(_replay(lm, round(tokens * REPLAY_SHARE / (1 - REPLAY_SHARE)), seed))
    made = Dataset.from_dict(
        {
            "ids": ids + [d["ids"] for d in replay],
            "weights": [[1.0] * len(row) for row in ids] + [d["weights"] for d in replay],
        }
    )
    made._fingerprint = digest("tour rows", str(corpus.train._fingerprint), str(count), str(seed), str(length))
    return made.shuffle(seed=derive(seed, "rows") % 2**32), PretrainingMix()


def _replay(lm: LanguageModel, tokens: int, seed: int) -> Any:
    tokenizer: Any = lm.tokenizer
    return base_mix(World(0), tokenizer, tokens, derive(seed, "replay"), prose=list(prose(("numpy", "networkx"))))


def _as_documents(rows: Dataset, lm: LanguageModel, length: int = 256) -> Dataset:
    """Texts as token ids, cut into rows that fit, in the form of the base's own mix."""
    ids: list[list[int]] = []
    for text in rows["text"]:
        tokens = encode_text(text, lm.tokenizer)
        ids += [tokens[a : a + length] for a in range(0, max(len(tokens) - 1, 1), length - 1)]
    made = Dataset.from_dict({"ids": ids, "weights": [[1.0] * len(row) for row in ids]})
    made._fingerprint = digest("tour documents", str(rows._fingerprint), str(length))
    return made


def _with_replay(
    lm: LanguageModel, taught: Dataset, corpus_rows: Dataset, own_base: bool, seed: int
) -> tuple[Dataset, Objective]:
    """Instructions among rows of the corpus run, so that neither the corpus nor the village is forgotten again."""
    goal = Chats()
    rows: list[dict[str, Any]] = []
    for row in taught:
        segment: Any = goal.segments(row, lm.tokenizer)  # type: ignore[arg-type]
        rows.append({"ids": segment.ids, "weights": segment.weights})
    kept = corpus_rows.select(range(min(len(corpus_rows), len(rows) // 3)))
    made = Dataset.from_dict(
        {
            "ids": [r["ids"] for r in rows] + list(kept["ids"]),
            "weights": [r["weights"] for r in rows] + list(kept["weights"]),
        }
    )
    made._fingerprint = digest("tour instructions with replay", str(taught._fingerprint), str(corpus_rows._fingerprint))
    return made, PretrainingMix()


def curve(path: Path) -> list[tuple[float, float]]:
    """(training tokens, held-out loss) along the corpus run below a stage's directory."""
    import json

    points: list[tuple[float, float]] = []
    tokens = 0.0
    lines = path / "corpus" / "metrics.jsonl"
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        numbers = json.loads(line)
        tokens = numbers.get("tokens", tokens)
        if "eval_loss" in numbers:
            points.append((tokens, numbers["eval_loss"]))
    return points
