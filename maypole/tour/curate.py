"""Stage 1: a small reference reads the beginning of every text, the middle of the ranks is kept, and two short
trainings of equal steps show what that did. Knows nothing about reports.

The base that ships is the reference for every tour: it reads prose, code and noise apart after a few words (a model
that learnt for some seconds, or knows the village alone, ranks documentation above noise), it is quick beside a
user's model, and no text of the corpus is spent on it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.identity import digest
from maypole.core.seeds import derive
from maypole.core.statistics import Interval, paired_ratio
from maypole.curate.corpus import Columns, open_corpus
from maypole.curate.perplexity_pruning import Reading, Scores, prune, score
from maypole.data.reader import read
from maypole.data.rows import TEXT
from maypole.evaluate.perplexity import perplexity
from maypole.tour.adapt import length_of, recipe, training_config
from maypole.tour.base import Base, reference
from maypole.tour.corpus import Corpus
from maypole.tour.mixture import Row, mixture
from maypole.tour.plan import EXAMPLES_PER_STEP, CuratePlan
from maypole.train.fit import fit
from maypole.train.supervised import LanguageModeling

DOCUMENTS, SCORES, KEPT = "documents", "scores", "kept"
"""What was chosen from, what the reference said of it, and what is kept."""
CRITERION: Literal["medium"] = "medium"
FOUND = "found.json"
A_FILE = 500
"""Documents; a stopped stage goes on with the file it was reading."""
Side = Literal["all", "kept"]
SIDES: tuple[Side, ...] = ("all", "kept")


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it. `composition` has a line a domain: documents, kept, tokens, kept tokens; `loss` is that on
    held-out documents after equal steps on all and on what is kept, in nats per token, `change` kept minus all."""

    composition: Sequence[Mapping[str, Any]]
    loss: Mapping[Side, float]
    change: Interval

    @classmethod
    def of(cls, stage: Path) -> "Found":
        """That of a finished stage."""
        document = json.loads((stage / FOUND).read_bytes())
        return cls(document["composition"], document["loss"], Interval(**document["change"]))

    @classmethod
    def made(cls, composition: Sequence[Mapping[str, Any]], trial: Mapping[str, Any]) -> "Found":
        """From the nll of every held-out document, `tokens` long, by either side."""
        tokens = np.array(trial["tokens"])
        loss: dict[Side, float] = {side: float(np.sum(trial[side]) / tokens.sum()) for side in SIDES}
        return cls(composition, loss, paired_ratio(trial["kept"], trial["all"], tokens))

    @property
    def goes_on(self) -> Side:
        """What is learnt from: what is kept, unless that taught clearly less."""
        return "all" if self.change.low > 0 else "kept"


def curate(base: Base, corpus: Corpus, plan: CuratePlan, artifact: Artifact, *, seed: int) -> None:
    """Make `artifact`: the documents, their scores and what is kept as its parts, and ``found.json``."""
    folder = artifact.path / DOCUMENTS
    _write(folder, mixture(corpus, plan.documents, plan.noise, seed), base)
    documents = open_corpus([folder], Columns(id="id", domain="domain"))
    mixed: dict[str, object] = {"documents": folder}
    reading = Reading(max_tokens=plan.tokens_read)
    with artifact.child(SCORES, kind=SCORES, config=reading, inputs=mixed) as scores:
        if not scores.finished:
            score(reference(), documents, out=scores, reading=reading)
    choice = {"criterion": CRITERION, "rate": plan.rate}
    with artifact.child(KEPT, kind="pruned", config=choice, inputs=mixed, seed=seed) as kept:
        if not kept.finished:
            prune(documents, Scores.open(scores.path), out=kept, criterion=CRITERION, rate=plan.rate, seed=seed)
    texts = {"all": _texts(folder), "kept": _texts(kept.path / "data")}
    held_out = corpus.held_out[: plan.trial_documents]["text"]
    trial: dict[str, Any] = {}
    for side, chosen in texts.items():
        trial |= _trained(base, side, chosen, held_out, plan, artifact, seed)
    found = Found.made(_composition(folder, kept.path / "data"), trial)
    write_atomic(artifact.path / FOUND, json.dumps(asdict(found)))
    artifact.finish(
        {
            "documents": plan.documents + plan.noise, "kept": len(texts["kept"]), "loss_all": found.loss["all"],
            "loss_kept": found.loss["kept"], "change": [found.change.low, found.change.high],
        }
    )  # fmt: skip


def chosen(stage: Artifact, corpus: Corpus) -> Corpus:
    """`corpus` with the texts that a finished stage found best to learn from."""
    side = Found.of(stage.path).goes_on
    texts = _texts(stage.path / (DOCUMENTS if side == "all" else f"{KEPT}/data"))
    texts._fingerprint = digest("tour curated", stage.key, side)
    return replace(corpus, train=texts)


def _write(folder: Path, rows: list[Row], base: Base) -> None:
    """The documents in files of some hundred, with the tokens that each has for the model that learns from it."""
    folder.mkdir(exist_ok=True)
    files = {folder / f"{i // A_FILE:05}.jsonl": rows[i : i + A_FILE] for i in range(0, len(rows), A_FILE)}
    missing = {path: some for path, some in files.items() if not path.is_file()}
    if missing:
        tokenizer = base.load().tokenizer
        for path, some in missing.items():
            ids = tokenizer([row["text"] for row in some], add_special_tokens=False)["input_ids"]
            lines = (json.dumps({**row, "tokens": len(i)}, ensure_ascii=False) for row, i in zip(some, ids))
            write_atomic(path, "".join(f"{line}\n" for line in lines))


def _texts(folder: Path) -> Dataset:
    return read(str(folder), TEXT).select_columns(["text"])


def _trained(
    base: Base, side: str, texts: Dataset, held_out: list[str], plan: CuratePlan, artifact: Artifact, seed: int
) -> dict[str, Any]:
    """nll of the held-out documents, and their tokens, after a short training of a fresh base on `texts`."""
    path = artifact.checkpoints / f"{side}.json"
    if not path.is_file():
        lm = base.load()
        how, smaller = recipe(lm, base.own), (plan.examples_per_step / EXAMPLES_PER_STEP) ** 0.5
        config = training_config(
            smaller * how.corpus_rate, plan.trial_steps, plan.examples_per_step, length_of(lm), how.peft
        )
        run = artifact.checkpoints / side
        fit(lm, texts, LanguageModeling(), config, out=run, seed=derive(seed, "trial"))
        found = perplexity(lm, held_out, max_length=length_of(lm))
        write_atomic(path, json.dumps({side: found.nll.tolist(), "tokens": found.tokens.tolist()}))
    return json.loads(path.read_bytes())


def _composition(before: Path, after: Path) -> list[dict[str, Any]]:
    """The largest domain first."""
    lines: dict[str, dict[str, Any]] = {}
    for folder, names in ((before, ("documents", "tokens")), (after, ("kept", "kept_tokens"))):
        for row in _rows(folder):
            line = lines.setdefault(row["domain"], {"domain": row["domain"], **dict.fromkeys(_COUNTED, 0)})
            line[names[0]] += 1
            line[names[1]] += row["tokens"]
    return sorted(lines.values(), key=lambda line: -line["documents"])


_COUNTED = ("documents", "kept", "tokens", "kept_tokens")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as file:
            yield from map(json.loads, file)


def saved(stage: Path) -> str:
    """How far an unfinished stage is; "" before all is scored."""
    if (stage / KEPT).is_dir():
        return "the choice"
    return "all scores" if (stage / SCORES).is_dir() else ""
