"""LoRA Land's serving half (LoRAX, arXiv 2405.00732): many specialists on one base at the price of one.

Each of 25 households writes with a cipher of its own: every letter is moved by so many places. A base learns to copy
words, an adapter a cipher. How much adapters cost, and how requests for many of them are answered beside other ways to
serve them, is measured on a base of 11M parameters with random weights, for which numbers do not matter to speed.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from maypole.claims.adapter_costs import Load, exchange, llama, loading, throughput
from maypole.claims.effects import Effect, Part
from maypole.core.seeds import derive
from maypole.engine import NO_ADAPTER, Engine, Request, Sampling
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load as open_model
from maypole.models.peft_options import PeftOptions
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.supervised import Completions
from maypole.village.word_tokenizer import word_tokenizer
from maypole.village.world import World

STATEMENT = (
    "25 adapters of one small base each do their own task and no other, in one batch, at the speed of one adapter: "
    "faster than PEFT's mixed batch, than one adapter at a time and than a process for each. Loading blocks nobody, "
    "and where they do not all fit they are exchanged fairly. Controls: the base alone, another household's adapter, "
    "all requests on one adapter, and adapters wider than the model."
)
ALPHABET = string.ascii_lowercase[:25]
TAUGHT = PeftOptions(r=4, lora_alpha=16)
"""On all linear layers: 25 of them and their base are a tenth of 25 models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the ciphers and their models (layers, width); `load` is that of the base whose speed is measured."""

    households: int = 25
    letters: int = 6
    model: tuple[int, int] = (3, 128)
    base_steps: int = 400
    adapter_steps: int = 120
    batch: int = 64
    words: int = 3_840  # to learn a cipher from
    held_out: int = 40
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Household:
    """A name, and a cipher that moves every letter by `distance` places."""

    name: str
    distance: int

    def written(self, word: Sequence[int]) -> str:
        return _spelled([(letter + self.distance) % len(ALPHABET) for letter in word])


def households(seed: int, count: int) -> list[Household]:
    """The families of a village; the first writes plainly."""
    world = World(seed, families=count, tail=0, strangers=0)
    names = list(dict.fromkeys(person.last.lower() for person in world.people))
    return [Household(name, distance) for distance, name in enumerate(names)]


def words(seed: int, *names: str, count: int, letters: int) -> list[list[int]]:
    return np.random.default_rng(derive(seed, *names)).integers(0, len(ALPHABET), (count, letters)).tolist()


def _spelled(word: Sequence[int]) -> str:
    return " ".join(ALPHABET[letter] for letter in word)


def _asked(word: Sequence[int]) -> str:
    return f"{_spelled(word)} ="


def specialists(seed: int, workdir: Path, sizes: Sizes) -> list[Effect]:
    """Train the base and its adapters, and ask each household for words of its own, all in one batch."""
    everybody = households(seed, sizes.households)
    base = workdir / "base"
    tokenizer = word_tokenizer([f"{' '.join(ALPHABET)} ="])
    lm = llama(tokenizer, sizes.model, len(tokenizer), derive(seed, "base"))
    _taught(lm, everybody[0], seed, _config(sizes, sizes.base_steps, 3e-3, None), sizes, base)
    for household in everybody:
        config = _config(sizes, sizes.adapter_steps, 5e-3, TAUGHT)
        _taught(open_model(base), household, seed, config, sizes, workdir / "households" / household.name)
    engine = Engine.load(base, adapters={h.name: workdir / "households" / h.name for h in everybody})
    asked = {h.name: words(seed, "asked", h.name, count=sizes.held_out, letters=sizes.letters) for h in everybody}
    neighbour = dict(zip((h.name for h in everybody), (h.name for h in everybody[1:] + everybody[:1])))
    routed = _right(engine, everybody, asked, {name: name for name in asked})
    wrong = _right(engine, everybody, asked, neighbour)
    alone = _right(engine, everybody, asked, dict.fromkeys(asked, NO_ADAPTER))
    plain, *coded = (h.name for h in everybody)
    one = sum(p.nbytes for p in lm.model.parameters())
    beside = sum(_weights(workdir / "households" / h.name) for h in everybody)
    metric = "words written right"
    return [
        Effect("each household by its adapter, the worst", metric, min(routed.values()), None, 0.97, "ours>="),
        Effect("by another's adapter", metric, float(np.mean([*wrong.values()])), None, 0.05, "ours<=", control=True),
        Effect("by the base", metric, max(alone[name] for name in coded), None, 0.05, "ours<=", control=True),
        Effect("plain words by the base", metric, alone[plain], None, 0.97, "ours>=", control=True),
        Effect("one base and its adapters", "bytes", one + beside, one * len(everybody), 0.1, "ratio<="),
    ]


def _taught(
    lm: LanguageModel, household: Household, seed: int, config: TrainConfig, sizes: Sizes, out: Path
) -> None:
    lesson = words(seed, "lesson", household.name, count=sizes.words, letters=sizes.letters)
    rows = [{"prompt": _asked(word), "completion": f" {household.written(word)}"} for word in lesson]
    fit(lm, Dataset.from_list(rows), Completions(), config, out=out, seed=derive(seed, household.name))


def _right(
    engine: Engine, everybody: Sequence[Household], asked: dict[str, list[list[int]]], adapter: dict[str, str]
) -> dict[str, float]:
    """The share of each household's words that are written as it writes them, by the adapters given."""
    order = [(h, word) for turn in zip(*asked.values()) for h, word in zip(everybody, turn)]
    sampling = Sampling(max_tokens=len(order[0][1]) + 2, temperature=0.0)
    outputs = engine.generate([Request(_asked(word), sampling, adapter=adapter[h.name]) for h, word in order])
    right: dict[str, list[bool]] = {h.name: [] for h in everybody}
    for (household, word), output in zip(order, outputs):
        right[household.name].append(output.text.split() == household.written(word).split())
    return {name: float(np.mean(found)) for name, found in right.items()}


def _config(sizes: Sizes, steps: int, learning_rate: float, peft: PeftOptions | None) -> TrainConfig:
    return TrainConfig(
        learning_rate=learning_rate, max_steps=steps, examples_per_step=sizes.batch, peft=peft, precision="fp32",
        warmup_ratio=0.1 if peft else 0.0, save_steps=steps,
    )  # fmt: skip


def _weights(directory: Path) -> int:
    return (directory / "adapter_model.safetensors").stat().st_size


def serving(seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """L1 to L4 of one seed."""
    found = specialists(seed, workdir, sizes)
    found += throughput(seed, workdir, sizes.load)
    found += loading(seed, workdir, sizes.load)
    return found + exchange(seed, workdir, sizes.load)


PARTS: dict[str, Part | None] = {"serving": Part(serving, timed=True), "matrix": None}
