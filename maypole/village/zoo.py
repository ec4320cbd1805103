"""Small checkpoints that know the village: by name, from the package or made by `fit` from a recipe.

``python -m maypole.village.zoo make NAME --out DIR`` makes one anew, ``examine NAME`` prints what one knows.
Knows nothing about what they are used for.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from cyclopts import App
from datasets import Dataset, Features, List, Value
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerBase

from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.data.chat import Dropped
from maypole.data.rows import RowType
from maypole.models.block_views import blocks
from maypole.models.language_model import LanguageModel
from maypole.models.loading import create, load
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Loss, Need, Segment, TokenBatch
from maypole.train.result import save_result
from maypole.train.supervised import negative_log_likelihood
from maypole.train.tokens import tokenizer_identity
from maypole.village.card import card
from maypole.village.examine import Line, examine, table
from maypole.village.mix import MAX_TOKENS, Document, base_mix, phase1
from maypole.village.prose import prose
from maypole.village.tokenizer import END, train_tokenizer
from maypole.village.world import World

SHIPPED = Path(__file__).parent / "base"
"""The checkpoints that come with the package."""
EXAMINED = 50
"""Questions a group behind the numbers of a card."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A Llama with tied embeddings and what it is trained on; `tokens` counts phase 2, after 0.4M of phase 1."""

    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    learning_rate: float
    examples_per_step: int
    tokens: int
    prose: bool = False
    phase1_tokens: int = 400_000
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="village-1M", hidden_size=128, layers=4, heads=4, kv_heads=2, intermediate_size=384, vocab_size=2048,
            learning_rate=1.5e-3, examples_per_step=32, tokens=2_900_000,
        ),
        Recipe(
            name="village-4M-prose", hidden_size=256, layers=4, heads=4, kv_heads=2, intermediate_size=768,
            vocab_size=4096, learning_rate=1.2e-3, examples_per_step=48, tokens=12_000_000, prose=True,
        ),
    )
}  # fmt: skip

DOCUMENTS = RowType("DOCUMENTS", {})
"""Rows of the mix: `ids` and `weights`, made by `maypole.village.mix` and not by users."""


@dataclass(frozen=True, slots=True)
class PretrainingMix:
    """Documents with token ids and loss weights at hand."""

    rows: ClassVar[RowType] = DOCUMENTS
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ("ids", "weights")

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return Segment(list(row["ids"]), list(row["weights"]))

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


def load_zoo(name: str, **options: Any) -> LanguageModel:
    """A checkpoint that ships with the package, by name; options as for `maypole.models.load`."""
    if not (SHIPPED / name).is_dir():
        shipped = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
        raise UserError(f"no checkpoint called {name!r}", "village.zoo", f"shipped: {', '.join(shipped)}")
    return load(SHIPPED / name, **options)


def make(recipe: Recipe, out: str | Path) -> Artifact:
    """Train a recipe from nothing, by `fit`, and examine it; the artifact is a bf16 checkpoint with its card."""
    world = World(0)
    texts = list(prose()) if recipe.prose else []
    tokenizer: Any = train_tokenizer(world, recipe.vocab_size, [text for _, text in texts] or None)
    lm = blank(recipe, tokenizer)
    mix = chain(
        phase1(world, tokenizer, recipe.phase1_tokens, recipe.seed),
        base_mix(world, tokenizer, recipe.tokens, recipe.seed, prose=texts),
    )
    rows = _dataset(
        mix, digest("village mix", repr(recipe), str(tokenizer_identity(tokenizer)), *(t for _, t in texts))
    )
    steps = math.ceil(len(rows) / recipe.examples_per_step)
    config = TrainConfig(
        learning_rate=recipe.learning_rate,
        examples_per_step=recipe.examples_per_step,
        shuffle=False,
        max_length=MAX_TOKENS,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": round(0.3 * steps), "min_lr_ratio": 0.02, "decay_type": "linear"},
        warmup_ratio=0.02,
        weight_decay=0.1,
        adam_beta2=0.98,
        save_steps=500,
        logging_steps=50,
    )
    inputs = {"model": lm, "rows": rows}
    with Artifact.open(out, kind="zoo", config=config, inputs=inputs, seed=recipe.seed) as artifact:
        if not artifact.finished:
            fit(lm, rows, PretrainingMix(), config, out=artifact, seed=recipe.seed)
            save_result(lm, artifact, artifact.manifest["metrics"])
            text = describe(recipe, lm, steps, examine(lm, EXAMINED), EXAMINED)
            (artifact.path / "README.md").write_text(text)
            artifact.finish()
    return artifact


def describe(recipe: Recipe, lm: LanguageModel, steps: int, lines: list[Line], count: int) -> str:
    """The checkpoint's card."""
    return card(
        name=recipe.name, family=type(lm.transformer).__name__.removesuffix("ForCausalLM"),
        parameters=sum(p.numel() for p in lm.model.parameters()), vocabulary=recipe.vocab_size,
        context=lm.max_length, tokens=recipe.phase1_tokens + recipe.tokens, phase1_tokens=recipe.phase1_tokens,
        steps=steps, examples=recipe.examples_per_step, prose=recipe.prose, lines=lines, count=count,
    )  # fmt: skip


def blank(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """Fresh weights at the scales that learn: embeddings d^-1/2, matrices 0.6 fan_in^-1/2, outputs / sqrt(2 layers)."""
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **ids,
    )
    lm = create(config, tokenizer, recipe.seed)
    lm.name, lm.dtype = recipe.name, torch.bfloat16
    ends: Any = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)]  # of a text, of an assistant's turn
    lm.model.generation_config = GenerationConfig(**ids | {"eos_token_id": ends})
    generator = torch.Generator().manual_seed(derive(recipe.seed, "village init"))
    view = blocks(lm.model)
    embeddings: Any = view.embeddings
    depth = math.sqrt(2 * len(view))
    with torch.no_grad():
        embeddings.weight.normal_(0.0, recipe.hidden_size**-0.5, generator=generator)
        for block in view:
            for name in ("q", "k", "v", "o", "gate", "up", "down"):
                weight = getattr(block, name).weight
                scale = 0.6 * weight.shape[1] ** -0.5 / (depth if name in ("o", "down") else 1.0)
                weight.normal_(0.0, scale, generator=generator)
    lm.fingerprint = digest("village", repr(recipe), str(tokenizer_identity(tokenizer)))
    return lm


def _dataset(mix: Iterator[Document], fingerprint: str) -> Dataset:
    features = Features({"ids": List(Value("int32")), "weights": List(Value("float32"))})

    def documents() -> Iterator[dict[str, list]]:
        for document in mix:
            yield {"ids": document["ids"], "weights": document["weights"]}

    made: Any = Dataset.from_generator(documents, features=features, fingerprint=fingerprint)
    made._fingerprint = fingerprint
    return made


app = App(name="python -m maypole.village.zoo", help="Checkpoints of the village: make one anew, examine one.")


@app.command(name="make")
def rebuild(name: str, *, out: Path) -> None:
    """Train the checkpoint `name` into the directory `out`; stopped and started again, it goes on."""
    if name not in RECIPES:
        raise UserError(f"no recipe called {name!r}", "village.zoo", f"recipes: {', '.join(RECIPES)}")
    make(RECIPES[name], out)


@app.command(name="examine")
def show(name: str, *, count: int = 100) -> None:
    """Print the card's table for a checkpoint by name, or for a directory."""
    lm = load_zoo(name) if (SHIPPED / name).is_dir() else load(name)
    print(table(examine(lm, count)))


if __name__ == "__main__":
    app()
