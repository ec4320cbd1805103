"""Stage 9: both models on the same held-out texts and questions, item by item. Knows nothing about reports.

What every item scored is kept, so that a change has its interval over items. Each model's answers are on the disk
before the next model begins.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.progress import track
from maypole.core.seeds import derive
from maypole.engine.engine import Engine
from maypole.engine.request import Request, Sampling
from maypole.evaluate.perplexity import Document, Perplexity, perplexity
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load
from maypole.tour.adapt import length_of
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus
from maypole.tour.measures import measures, summary
from maypole.tour.plan import EvaluatePlan
from maypole.tour.skills import Asked, ask, fitting, questions
from maypole.village.measures import is_right
from maypole.village.mix import documents
from maypole.village.prose import prose
from maypole.village.world import World

BEFORE, AFTER = "before", "after"
ITEMS, HELD_OUT = "items.json", "held_out.jsonl"
PROSE_PACKAGES = ("networkx", "jinja2")
"""Installed packages whose docstrings stand for general text where a model's own training data is not known."""
OPENING, CONTINUATION = 160, 60
"""Characters that a sample begins with, up to the last white space, and tokens that a model adds."""
RANDOM, EXTREME = 4, 2
"""Items shown: at random, and of the largest gains and losses each."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An item to be shown, and how it was chosen."""

    item: int
    label: str


def evaluate(base: Base, corpus: Corpus, plan: EvaluatePlan, tuned: Artifact, artifact: Artifact, seed: int) -> None:
    """Make `artifact`: ``items.json`` with what every item scored, ``held_out.jsonl`` with the documents."""
    texts: list[str] = corpus.held_out[: plan.documents]["text"]
    after = load(tuned.path)
    before = after.with_adapter(None) if after.adapters else base.load()
    engines = {BEFORE: Engine(before), AFTER: Engine(after)}
    asked = fitting(questions(plan.questions, own=base.own), engines[AFTER]) if plan.questions else []
    general = _general(before, plan.general, base.own) if plan.general else []
    found = {name: _measured(artifact, name, engine, texts, general, asked) for name, engine in engines.items()}
    put = [{"measure": a.measure, **asdict(a.question)} for a in asked]
    items = {"max_length": length_of(after), "questions": put, **found}
    gains = -change(items, "corpus")
    shown = choose(gains, seed)
    openings = [_opening(texts[s.item]) for s in shown]
    continued = {name: _continuations(engine, openings) for name, engine in engines.items()}
    samples = [
        {"label": s.label, "gain": float(gains[s.item]), "opening": opening}
        | {name: replies[i] for name, replies in continued.items()}
        for i, (s, opening) in enumerate(zip(shown, openings, strict=True))
    ]
    write_atomic(artifact.path / ITEMS, json.dumps({**items, "samples": samples}))
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    write_atomic(artifact.path / HELD_OUT, "".join(lines))
    artifact.finish(summary(measures(items)))


def change(items: dict[str, Any], part: str) -> NDArray[np.float64]:
    """Nats per token of each text of `part`, after minus before."""
    before, after = items[BEFORE][part], items[AFTER][part]
    return (np.array(after["nll"]) - np.array(before["nll"])) / np.array(before["tokens"])


def choose(gains: Sequence[float] | NDArray[np.float64], seed: int) -> list[Shown]:
    """Some items at random, then those of the rest that gained most and lost most."""
    order = list(range(len(gains)))
    random.Random(derive(seed, "shown")).shuffle(order)
    chosen = [Shown(i, f"at random, seed {seed}") for i in order[:RANDOM]]
    rest = sorted(order[RANDOM:], key=lambda i: -gains[i])
    chosen += [Shown(i, "largest gain") for i in rest[:EXTREME] if gains[i] > 0]
    return chosen + [Shown(i, "largest loss") for i in reversed(rest[-EXTREME:]) if gains[i] < 0]


def _measured(
    artifact: Artifact, name: str, engine: Engine, texts: list[str], general: list[Document], asked: list[Asked]
) -> dict[str, Any]:
    """What one model scores; read back where an earlier run of the stage got so far."""
    path = artifact.checkpoints / f"{name}.json"
    if not path.is_file():
        length = length_of(engine.lm)
        with track(f"evaluate {name}", len(texts) + len(general) + len(asked), "items") as step:
            found: dict[str, Any] = {"corpus": _scores(perplexity(engine, texts, max_length=length, step=step))}
            if general:
                found["general"] = _scores(perplexity(engine, general, max_length=length, step=step))
            found["replies"] = ask(engine, asked)
            found["right"] = [float(is_right(a.question, reply)) for a, reply in zip(asked, found["replies"])]
            step(len(asked))
        write_atomic(path, json.dumps(found))
    return json.loads(path.read_bytes())


def _scores(found: Perplexity) -> dict[str, Any]:
    return {"nll": found.nll.tolist(), "tokens": found.tokens.tolist()}


def _general(lm: LanguageModel, count: int, own: bool) -> list[Document]:
    """What the base should not forget: pages of the village it was made for; else docstrings of installed packages."""
    if own:
        tokenizer: Any = lm.tokenizer
        return [page["ids"] for page in islice(documents(World(0), tokenizer, "page", derive(0, "general")), count)]
    texts = [text for _, text in prose(PROSE_PACKAGES)]
    return [text[:2000] for text in texts[:: max(1, len(texts) // count)][:count]]


def _opening(text: str) -> str:
    """The first words of a text that goes on; half of a shorter one."""
    start = text[: min(OPENING, len(text) // 2)]
    return start[: max(start.rfind(" "), start.rfind("\n"))].rstrip() or start


def _continuations(engine: Engine, openings: Sequence[str]) -> list[str]:
    """What a model writes after each, greedily; on an empty cache, as a resumed stage has it: the last bits of a
    log-probability depend on what lies in there, and a tie can hang on them."""
    engine.close()
    sampling = Sampling(max_tokens=CONTINUATION, temperature=0.0)
    room = engine.max_length // 2
    requests = [Request(engine.encode(opening)[:room], sampling) for opening in openings]
    return [output.text for output in engine.generate(requests)]
