"""The figures of checkpoints, stored as JSON and shown side by side. Knows no model: the numbers are given.

``python docs/render.py`` puts the same table into docs/zoo.md.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from maypole.core.atomic import write_atomic


@dataclass(frozen=True, kw_only=True)
class Figures:
    """`knowledge` and `tasks` are accuracies of `questions` and a quarter as many questions, `chance` what guessing
    scores there, `perplexity` that of a token by kind of text. What training took is None where no manifest tells."""

    name: str
    family: str
    parameters: int
    vocabulary: int
    tokens: int | None
    steps: int | None
    wall_seconds: float | None
    cpu_seconds: float | None
    questions: int
    knowledge: dict[str, float]
    tasks: dict[str, float]
    chance: dict[str, float]
    perplexity: dict[str, float]
    versions: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> "Figures":
        return cls(**json.loads(file.read_text()))

    def write(self, folder: Path) -> Path:
        """Store them as NAME.json."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        write_atomic(file, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return file


COSTS: dict[str, Callable[[Figures], str]] = {
    "family": lambda f: f.family,
    "parameters": lambda f: f"{f.parameters:,}",
    "vocabulary": lambda f: f"{f.vocabulary:,}",
    "tokens of training": lambda f: _count(f.tokens),
    "steps": lambda f: _count(f.steps),
    "seconds of one core": lambda f: _count(f.cpu_seconds),
    "seconds by the clock": lambda f: _count(f.wall_seconds),
}


def table(found: Sequence[Figures]) -> str:
    """A column for each checkpoint, small ones first: what it took, what it knows, tasks one by one, perplexities."""
    ordered = sorted(found, key=lambda f: (f.parameters, f.name))
    first = ordered[0]
    blocks = [
        _block("checkpoint", ordered, {label: [show(f) for f in ordered] for label, show in COSTS.items()}),
        _scored("what it knows", ordered, {f.name: f.knowledge for f in ordered}),
        _scored("task, test inputs", ordered, {f.name: f.tasks for f in ordered}),
        _block(
            "perplexity of a token of",
            ordered,
            {kind: [f"{f.perplexity[kind]:.1f}" for f in ordered] for kind in first.perplexity},
        ),
    ]
    return "\n\n".join(blocks)


def _scored(title: str, ordered: Sequence[Figures], scores: dict[str, dict[str, float]]) -> str:
    chance = ordered[0].chance
    rows = {
        measure: [f"{chance[measure]:.2f}", *(f"{scores[f.name][measure]:.2f}" for f in ordered)]
        for measure in scores[ordered[0].name]
    }
    return _block(title, ordered, rows, "chance")


def _block(title: str, ordered: Sequence[Figures], rows: dict[str, list[str]], *before: str) -> str:
    head = [title, *before, *(f.name.removeprefix("village-") for f in ordered)]
    lines = [head, ["---"] * len(head), *([label, *cells] for label, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"
