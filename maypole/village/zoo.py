"""Small checkpoints that know the village, by name: from the package, or made by `fit` from a recipe and kept.

``python -m maypole.village.zoo make NAME --out DIR`` makes one anew, ``examine NAME`` prints what it knows and
``figures NAME`` stores that. Knows nothing about what checkpoints are used for.
"""

import math
from pathlib import Path
from typing import Any

from cyclopts import App

from maypole.core.artifact import Artifact
from maypole.core.errors import UserError
from maypole.core.identity import cache_dir, digest
from maypole.core.lock import DirectoryLock
from maypole.core.manifest import read as read_manifest
from maypole.core.progress import say
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.result import save_result
from maypole.train.tokens import tokenizer_identity
from maypole.village.blank import blank
from maypole.village.card import card
from maypole.village.examine import examine, figures, table
from maypole.village.figures import Figures
from maypole.village.figures import table as side_by_side
from maypole.village.mix import MAX_TOKENS
from maypole.village.pretraining import PretrainingMix, dataset
from maypole.village.recipes import RECIPES, Recipe, VillageMix, content

SHIPPED = Path(__file__).parent / "base"
"""The checkpoints that come with the package."""
EXAMINED = 50
"""Questions a group behind the numbers of a card."""


def load_zoo(name: str | Recipe, **options: Any) -> LanguageModel:
    """A checkpoint by name or recipe; options as for `maypole.models.load`.

    One that does not come with the package is trained at its first use and kept in the cache.
    """
    return load(place(name), **options)


def place(name: str | Recipe) -> Path:
    """The directory of a checkpoint, which is trained now where it neither ships nor lies in the cache.

    Stopped and called again, training goes on; a second process waits for the one that trains.
    """
    if isinstance(name, str):
        if (SHIPPED / name).is_dir():
            return SHIPPED / name
        if name not in RECIPES:
            raise UserError(f"no checkpoint called {name!r}", "village.zoo", f"one of: {', '.join(RECIPES)}")
        name = RECIPES[name]
    folder = cache_dir("zoo") / f"{name.name}-{content(name)[:12]}"
    made = folder / name.name
    if made.is_dir():
        return made
    waiting = f"{name.name} is being trained by process {{holder}}: waiting until it is done"
    lock = DirectoryLock.take(folder, waiting=lambda holder: say(waiting.format(holder=holder)))
    try:
        if not made.is_dir():
            say(f"{name.name} does not come with the package: it is trained once now and kept in {folder}")
            make(name, made)
    finally:
        lock.release()
    return made


def make(recipe: Recipe, out: str | Path) -> Artifact:
    """Train a recipe from nothing, by `fit`, and examine it where it read the village's mix; the artifact is a bf16
    checkpoint with its card."""
    tokenizer = recipe.material.tokenizer()
    lm = blank(recipe.model, recipe.init, tokenizer, recipe.seed, recipe.name)
    lm.fingerprint = digest("blank", content(recipe), str(tokenizer_identity(tokenizer)))
    rows = dataset(recipe.material.documents(tokenizer, recipe.seed))
    steps = math.ceil(len(rows) / recipe.examples_per_step)
    config = TrainConfig(
        learning_rate=recipe.learning_rate,
        examples_per_step=recipe.examples_per_step,
        shuffle=False,
        max_length=MAX_TOKENS,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": round(0.3 * steps), "min_lr_ratio": 0.02, "decay_type": "linear"},
        warmup_ratio=0.02,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        save_steps=500,
        logging_steps=50,
    )
    inputs = {"model": lm, "rows": rows}
    with Artifact.open(out, kind="zoo", config=config, inputs=inputs, seed=recipe.seed) as artifact:
        if not artifact.finished:
            fit(lm, rows, PretrainingMix(), config, out=artifact, seed=recipe.seed)
            save_result(lm, artifact, artifact.manifest["metrics"])
            if isinstance(recipe.material, VillageMix):
                tokens = artifact.manifest["metrics"]["tokens"]
                (artifact.path / "README.md").write_text(_card(recipe, recipe.material, lm, steps, tokens))
            artifact.finish()
    return artifact


def _card(recipe: Recipe, read: VillageMix, lm: LanguageModel, steps: int, tokens: int) -> str:
    family = type(lm.transformer).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return card(
        name=recipe.name, family=family, parameters=sum(p.numel() for p in lm.model.parameters()),
        vocabulary=read.vocab_size, context=lm.max_length, tokens=tokens, phase1_tokens=read.phase1_tokens,
        lookup_tokens=read.lookup_tokens, steps=steps, examples=recipe.examples_per_step, prose=read.prose,
        lines=examine(lm, EXAMINED), count=EXAMINED,
    )  # fmt: skip


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
    print(table(examine(load(_named(name)), count)))


@app.command(name="figures")
def store(*names: str, count: int = 100, out: Path = Path("docs/results/zoo")) -> None:
    """Measure checkpoints, by name or directory, into `out`/NAME.json, and print all figures there side by side."""
    for name in names:
        found = _named(name)
        figures(load(found), found.name, read_manifest(found) or {}, count).write(out)
    print(side_by_side([Figures.read(file) for file in out.glob("*.json")]))


def _named(name: str) -> Path:
    return place(name) if name in RECIPES else Path(name)


if __name__ == "__main__":
    app()
