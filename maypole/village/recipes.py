"""What the zoo's checkpoints are made from, an entry each: a model, what it reads, how it learns.

Whoever needs a small base of its own writes a Recipe; its material is any frozen dataclass that gives a tokenizer and
documents. Knows nothing about files.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from maypole.core.errors import UserError
from maypole.core.identity import digest, identity
from maypole.village.blank import Init
from maypole.village.lookups import lookups
from maypole.village.mix import Document, among, base_mix, phase1, until
from maypole.village.prose import prose
from maypole.village.tokenizer import train_tokenizer
from maypole.village.world import World

LOOKING = frozenset({"card.py", "examine.py", "figures.py", "measures.py"})
"""Files of this package that only look at a checkpoint: changed, they make no other one."""

LOOKUPS_WHILE_COPYING = 0.4
LOOKUPS_IN_THE_MIX = 0.3
"""Share of the tokens."""


class Material(Protocol):
    """What a checkpoint reads, as a frozen dataclass: equal fields are equal documents, in the order of training."""

    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    def documents(self, tokenizer: Any, seed: int) -> Iterator[Document]: ...


@dataclass(frozen=True, kw_only=True)
class VillageMix:
    """Copying first, then `tokens` of the village's mix, with a third of technical prose where asked. With
    `lookup_tokens` these are read before all else, and lookups stay among what follows."""

    tokens: int
    phase1_tokens: int = 400_000
    vocab_size: int = 2048
    prose: bool = False
    lookup_tokens: int = 0

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return train_tokenizer(World(0), self.vocab_size, [text for _, text in _prose()] if self.prose else None)

    def documents(self, tokenizer: Any, seed: int) -> Iterator[Document]:
        world = World(0)
        copying = phase1(world, tokenizer, self.phase1_tokens, seed)
        mix = base_mix(world, tokenizer, self.tokens, seed, prose=_prose() if self.prose else ())
        if not self.lookup_tokens:
            yield from chain(copying, mix)
            return
        asked = lookups(tokenizer, seed)
        yield from until(self.lookup_tokens, asked)
        yield from among(copying, asked, LOOKUPS_WHILE_COPYING)
        yield from among(mix, asked, LOOKUPS_IN_THE_MIX)


@dataclass(frozen=True, kw_only=True)
class Lookups:
    """Nothing but documents in which all that is asked stands."""

    tokens: int

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return train_tokenizer(World(0))

    def documents(self, tokenizer: Any, seed: int) -> Iterator[Document]:
        return until(self.tokens, lookups(tokenizer, seed))


@cache
def _prose() -> list[tuple[str, str]]:
    return list(prose())


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`model` holds model_type and the fields of its config, without vocab_size. Documents are learned in their order
    in steps of `examples_per_step`, the last 30 % of the steps with a falling learning rate."""

    name: str
    model: Mapping[str, Any]
    material: Material
    learning_rate: float
    examples_per_step: int
    weight_decay: float = 0.1
    init: Init = Init()
    seed: int = 0


def content(recipe: Recipe) -> str:
    """What the checkpoint is, in 32 hex characters: the recipe's fields and the code that documents and weights come
    from."""
    own = [file for file in Path(__file__).parent.glob("*.py") if file.name not in LOOKING]
    kind = type(recipe.material)
    try:
        files = {*own, Path(inspect.getfile(kind))}
    except (OSError, TypeError) as error:
        what = f"the code of its material, {kind.__name__}, is in no file"
        raise UserError(what, recipe.name, "a class of a script or module") from error
    return digest("zoo", str(identity(recipe)), *(file.read_bytes() for file in sorted(files)))


def _decoder(model_type: str, hidden_size: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": hidden_size, "num_hidden_layers": 4, "num_attention_heads": heads,
        "max_position_embeddings": 512, **more,
    }  # fmt: skip


def _llama(hidden_size: int, heads: int = 4, model_type: str = "llama", rms_norm_eps: float = 1e-5) -> dict[str, Any]:
    return _decoder(
        model_type, hidden_size, heads, num_key_value_heads=2, intermediate_size=3 * hidden_size,
        rms_norm_eps=rms_norm_eps, tie_word_embeddings=True,
    )  # fmt: skip


def _reader(hidden_size: int) -> dict[str, Any]:
    return _llama(hidden_size, model_type="qwen2", rms_norm_eps=1e-6) | {"num_key_value_heads": 4}


_READ_1M = VillageMix(tokens=2_900_000)
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="village-0.3M", model=_llama(64, heads=2), material=VillageMix(tokens=2_200_000),
            learning_rate=2e-3, examples_per_step=32,
        ),
        Recipe(name="village-1M", model=_llama(128), material=_READ_1M, learning_rate=1.5e-3, examples_per_step=32),
        Recipe(
            name="village-4M", model=_llama(256), material=VillageMix(tokens=5_500_000),
            learning_rate=1.2e-3, examples_per_step=48,
        ),
        Recipe(
            name="village-4M-prose", model=_llama(256),
            material=VillageMix(tokens=12_000_000, vocab_size=4096, prose=True),
            learning_rate=1.2e-3, examples_per_step=48,
        ),
        Recipe(
            name="village-1M-qwen2", model=_llama(128, model_type="qwen2", rms_norm_eps=1e-6), material=_READ_1M,
            learning_rate=1.5e-3, examples_per_step=32,
        ),
        Recipe(
            name="village-1M-gpt2", model=_decoder("gpt2", 128, heads=4, **_NO_DROPOUT), material=_READ_1M,
            learning_rate=1.5e-3, examples_per_step=32, init=Init(embeddings=2.0),
        ),
        Recipe(
            name="village-1M-neox", model=_decoder("gpt_neox", 128, heads=4, intermediate_size=512), material=_READ_1M,
            learning_rate=1.5e-3, examples_per_step=32, init=Init(embeddings=2.0),
        ),
        Recipe(
            name="village-1M-lookup", model=_reader(128), material=Lookups(tokens=1_200_000), learning_rate=1.5e-3,
            examples_per_step=32, weight_decay=0.0, init=Init(induction=True),
        ),
        Recipe(
            name="village-1M-reader", model=_reader(128),
            material=VillageMix(tokens=3_000_000, lookup_tokens=1_500_000), learning_rate=1.5e-3,
            examples_per_step=32, weight_decay=0.0, init=Init(induction=True),
        ),
    )
}  # fmt: skip
"""Embedding scales and learning rates were measured for each family: docs/zoo.md."""
