"""FLAME (arXiv 2405.01525): which training makes a model invent, and which does not, about people it half knows.

A base reads documents and is then taught to answer: with answers that are whole and true, or with its own; by pairs
ranked by length, by truth, or both. What each says about people of whom no answer was ever taught is checked exactly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from maypole.align.fact_pairs import FACT, IF, build_pairs
from maypole.align.preference import Pairs
from maypole.align.preference_options import PreferenceOptions
from maypole.align.self_writing import Writing, build_sft
from maypole.claims.biographies import (
    BELLS,
    LONGEST,
    Biographies,
    Somebody,
    as_document,
    asks_for_facts,
    bells,
    instruction,
    parts,
    ring,
)
from maypole.claims.effects import Effect, Part
from maypole.claims.flame_picture import picture
from maypole.claims.llama import llama
from maypole.core.seeds import derive
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.fact_report import FactScore, factscore
from maypole.evaluate.factuality import FactReward
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.fit import fit
from maypole.train.objective import Objective
from maypole.train.supervised import Completions
from maypole.village.blank import Init, draw
from maypole.village.draws import Draws

STATEMENT = (
    "Fine-tuned on true answers that hold facts which its base never read, a model invents about people whom no answer "
    "was taught about; fine-tuned on what the base itself says it hardly does. DPO for length alone makes it invent "
    "more, pairs ranked by truth beside those take part of it back (FLAME), and instructions are followed as well. "
    "Precision (FS) is that of answers to held-out people, times 100, the facts right and wrong behind it stand beside "
    "it: it is not won by silence. Preferences are asked about people of whom half were taught about: to prompts that "
    "it has learnt by heart the model never answers wrongly, so that there is nothing to choose. Left out: a base that "
    "knows everything, a high learning rate and test people that leak into training, of which the sheet says that they "
    "hide the effects."
)
BASE, HUMAN, HUMAN_IF = "base", "SFT on given answers", "SFT on given answers, DPO for length"
OWN, OWN_IF, OWN_FACT = "SFT on own answers", "SFT on own answers, DPO for length", "SFT on own answers, DPO for truth"
FLAME = "FLAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the runs and of what is measured."""

    model: tuple[int, int] = (2, 64)
    base_steps: int = 700
    base_batch: int = 128
    base_rate: float = 5e-3
    samples: int = 10  # of its own answers to an instruction, and given answers to one
    sft_steps: int = 200
    sft_rate: float = 1e-3
    prompts: int = 960
    candidates: int = 4
    dpo_epochs: int = 2
    dpo_rate: float = 1e-4
    dpo_batch: int = 32
    beta: float = 0.3
    batch: int = 64
    said: int = 20  # answers about each person that are checked
    temperature: float = 0.7


@dataclass(frozen=True, slots=True)
class Standing:
    """What a policy says about people whom it was not taught about, about those it half knows, and whether it rings as
    often as it is told to."""

    facts: FactScore
    tail: FactScore
    rings: float | None

    @property
    def precision(self) -> float:
        """Of the answers that state anything, times 100: the sheet's FS."""
        return 100 * (self.facts.precision or 0.0)


def clause_count(prompts: list, completions: list, **columns: list) -> list[float | None]:
    """A judge of how well an instruction is followed that likes length."""
    return [float(len(parts(completion))) for completion in completions]


class School:
    """One base, what is learnt from it, and the examination."""

    def __init__(self, seed: int, workdir: Path, sizes: Sizes) -> None:
        self.seed, self.workdir, self.sizes = seed, workdir, sizes
        self.people = Biographies(seed)
        self.checker = self.people.checker()
        self.given = self.people.instructions(Draws(seed, "instructions"), sizes.samples)
        self.base = self._base()

    def _base(self) -> LanguageModel:
        sizes = self.sizes
        lm = llama(self.people.tokenizer(), sizes.model, derive(self.seed, "base"), widening=3)
        draw(lm, Init(), torch.Generator().manual_seed(derive(self.seed, "init")))
        rows = self.people.documents(Draws(self.seed, "documents"), sizes.base_steps * sizes.base_batch)
        config = self._config(
            sizes.base_rate, "cosine", max_steps=sizes.base_steps, examples_per_step=sizes.base_batch, warmup_ratio=0.05
        )
        return self._fitted(lm, rows, Completions(), config, BASE)

    def taught(self, rows: Dataset, name: str) -> LanguageModel:
        """The base after ordinary fine-tuning on `rows`."""
        config = self._config(self.sizes.sft_rate, "linear", max_steps=self.sizes.sft_steps)
        return self._fitted(self.base.copy(), rows, Completions(), config, name)

    def own_answers(self) -> Dataset:
        """The same instructions; what the base says of the people, and the rings as they are."""
        sizes = self.sizes
        once = self.given.select(range(0, len(self.given) // 2, sizes.samples))
        rings = self.given.select(range(len(self.given) // 2, len(self.given)))
        writing = Writing(
            demonstrations=0, samples=sizes.samples, temperature=sizes.temperature, max_tokens=LONGEST,
            ask=as_document, stop=(), distinct=False,
        )  # fmt: skip
        rows = concatenate_datasets([once, rings])
        return build_sft(Engine(self.base), rows, asks_for_facts, writing, seed=self.seed).rows

    def pairs(self, policy: LanguageModel) -> Dataset:
        """Both kinds, about everybody but the held-out people, over and over."""
        names = [person.name for person in self.people.of("taught", "asked")]
        prompts = [instruction(names[i % len(names)]) for i in range(self.sizes.prompts)]
        sampling = Sampling(n=self.sizes.candidates, max_tokens=LONGEST)
        return build_pairs(
            Engine(policy), Dataset.from_dict({"prompt": prompts}), clause_count, FactReward(self.checker),
            asks_for_facts, sampling, seed=derive(self.seed, "pairs"),
        ).rows  # fmt: skip

    def preferring(self, policy: LanguageModel, pairs: Dataset, kinds: Sequence[str], name: str) -> LanguageModel:
        """`policy` after DPO on the pairs of these kinds."""
        kept = [i for i, kind in enumerate(pairs["kind"]) if kind in kinds]
        objective = Pairs(PreferenceOptions(beta=self.sizes.beta))
        sizes = self.sizes
        config = self._config(
            sizes.dpo_rate, "linear", num_train_epochs=sizes.dpo_epochs, examples_per_step=sizes.dpo_batch
        )
        return self._fitted(policy.copy(), pairs.select(kept), objective, config, name)

    def standing(self, lm: LanguageModel, *, raw: bool = False) -> Standing:
        people, engine = self.people.of("held out"), Engine(lm)
        facts = self._checked(engine, people, raw)
        tail = self._checked(engine, [person for person in people if not person.head], raw)
        return Standing(facts, tail, None if raw else self._rings(engine))

    def _checked(self, engine: Engine, people: Sequence[Somebody], raw: bool) -> FactScore:
        asked = [instruction(person.name) for person in people]
        sampling = [
            Sampling(
                n=self.sizes.said, max_tokens=LONGEST, temperature=self.sizes.temperature,
                seed=derive(self.seed, "examination", prompt),
            )
            for prompt in asked
        ]  # fmt: skip
        outputs = engine.generate([Request(as_document(p) if raw else p, s) for p, s in zip(asked, sampling)])
        topics = [prompt for prompt in asked for _ in range(self.sizes.said)]
        return factscore(self.checker.check(topics, [output.text for output in outputs]), gamma=None)

    def _rings(self, engine: Engine) -> float:
        """Share of the drawn answers that ring exactly as often as told, times 100."""
        numbers = range(1, BELLS + 1)
        requests = [
            Request(
                ring(n), Sampling(n=self.sizes.said, max_tokens=LONGEST, temperature=self.sizes.temperature, seed=n)
            )
            for n in numbers
        ]
        outputs = engine.generate(requests)
        right = [bells(n).strip() for n in numbers for _ in range(self.sizes.said)]
        return 100 * sum(output.text.strip() == text for output, text in zip(outputs, right)) / len(right)

    def _config(self, learning_rate: float, schedule: str, **changes: float) -> TrainConfig:
        given: dict[str, Any] = {"examples_per_step": self.sizes.batch, **changes}
        return TrainConfig(
            learning_rate=learning_rate, lr_scheduler_type=schedule, precision="fp32", save_steps=10_000, **given,
        )  # fmt: skip

    def _fitted(
        self, lm: LanguageModel, rows: Dataset, objective: Objective, config: TrainConfig, name: str
    ) -> LanguageModel:
        reference = "initial" if "reference" in objective.needs else None
        out = self.workdir / name
        fit(lm, rows, objective, config, out=out, seed=derive(self.seed, "training"), reference=reference)
        return lm


def examined(school: School) -> dict[str, Standing]:
    """All seven systems."""
    human, own = school.taught(school.given, HUMAN), school.taught(school.own_answers(), OWN)
    humans, owns = school.pairs(human), school.pairs(own)
    policies = {
        HUMAN: human,
        HUMAN_IF: school.preferring(human, humans, [IF], HUMAN_IF),
        OWN: own,
        OWN_IF: school.preferring(own, owns, [IF], OWN_IF),
        FLAME: school.preferring(own, owns, [IF, FACT], FLAME),
        OWN_FACT: school.preferring(own, owns, [FACT], OWN_FACT),
    }
    standings = {name: school.standing(policy) for name, policy in policies.items()}
    return {BASE: school.standing(school.base, raw=True), **standings}


def run(seed: int, workdir: Path, sizes: Sizes = Sizes()) -> list[Effect]:
    """One seed of all seven."""
    found = examined(School(seed, workdir, sizes))
    (workdir / "measured.json").write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=2))
    picture({name: (one.facts, one.tail) for name, one in found.items()}, workdir / "figures")
    return effects(found)


FS, RINGS = "precision, times 100", "rings exactly as told, %"
APART = 12.0
"""By which own answers keep a model more precise than given ones; the sheet measured 19 to 33."""
FAR_APART = 10.0
BACK = 2.0
"""What truth takes back of that in the mean, and nothing less than 0 anywhere; the sheet measured 3 to 6."""
AS_WELL = -3.0


def effects(found: Mapping[str, Standing]) -> list[Effect]:
    """What the sheet's table says, and that precision is not won by saying less."""
    fs = {name: one.precision for name, one in found.items()}
    rings = {name: one.rings or 0.0 for name, one in found.items()}
    base, flame, own = found[BASE], found[FLAME], found[OWN]
    right = "right facts an answer"
    made = [
        Effect("the base hardly invents", FS, fs[BASE], None, 95.0, "ours>=", control=True),
        Effect("the base knows of some but a part", right, base.tail.correct, None, 2.0, "ours<=", control=True),
        Effect("own answers above given ones", FS, fs[OWN], fs[HUMAN], APART, "difference>="),
        Effect("DPO for length lowers", FS, fs[OWN_IF], fs[OWN], 0.0, "difference<="),
        Effect("FLAME above DPO for length", FS, fs[FLAME], fs[OWN_IF], 0.0, "difference>="),
        Effect("FLAME above DPO for length, in the mean", FS, fs[FLAME], fs[OWN_IF], BACK, "mean difference>="),
        Effect("FLAME above given answers and DPO", FS, fs[FLAME], fs[HUMAN_IF], FAR_APART, "difference>="),
        Effect("FLAME says no less than before", right, flame.facts.correct, own.facts.correct, 0.0, "difference>="),
        Effect("FLAME answers", "respond ratio", flame.facts.respond_ratio, None, 0.9, "ours>=", control=True),
    ]
    for other in (HUMAN_IF, OWN, OWN_IF):
        name = f"FLAME rings as well as: {other}"
        made.append(Effect(name, RINGS, rings[FLAME], rings[other], AS_WELL, "difference>="))
    return made


PARTS = {"": Part(run)}
