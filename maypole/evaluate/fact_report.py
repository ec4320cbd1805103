"""Facts in answers, and the scores of FActScore (arXiv 2305.14251) on them.

Precision alone is won by saying less, so it never comes without the facts that are right and wrong, the share of
answers that say anything, and their length. Knows nothing about who took an answer apart or checked it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["supported", "contradicted", "disputed", "unknown"]
"""Disputed: one document supports the fact and another contradicts it. Unknown: none says anything about it."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
GAMMA = 10.0
"""Facts from which an answer is long enough for its whole precision (FActScore's length penalty)."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One fact that an answer states, what the evidence says of it, and the passages that were read."""

    text: str
    verdict: Verdict
    evidence: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        return self.verdict == "supported"


@dataclass(frozen=True, slots=True)
class FactReport:
    """What was found in one answer.

    `words` is its length; `abstained` says that it declined to answer; `whole` counts sentences that could not be taken
    apart and stand among `atoms` as they are.
    """

    topic: str
    atoms: tuple[Atom, ...]
    words: int = 0
    abstained: bool = False
    whole: int = 0

    @property
    def correct(self) -> int:
        return sum(atom.supported for atom in self.atoms)

    @property
    def errors(self) -> int:
        return len(self.atoms) - self.correct

    @property
    def disputed(self) -> int:
        return sum(atom.verdict == "disputed" for atom in self.atoms)

    @property
    def responds(self) -> bool:
        return bool(self.atoms)

    @property
    def precision(self) -> float | None:
        """The supported share of the facts; None where there is none."""
        return self.correct / len(self.atoms) if self.atoms else None

    def score(self, gamma: float | None = None) -> float | None:
        """The precision, less what an answer of few facts loses by `gamma`."""
        return None if self.precision is None else self.precision * length_penalty(len(self.atoms), gamma)


def length_penalty(facts: int, gamma: float | None) -> float:
    """1 where facts > γ, else exp(1 - γ / facts) (FActScore's code); 1 without γ."""
    return 1.0 if gamma is None or facts > gamma else math.exp(1 - gamma / facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactScore:
    """Means over answers. `precision` and `score`, which has the length penalty, are those of the answers that state a
    fact, each counting as much (None where none does), as is `facts_per_response`; all others are of every answer."""

    precision: float | None
    score: float | None
    facts_per_response: float | None
    correct: float
    errors: float
    respond_ratio: float
    words: float
    answers: int
    abstained: int
    disputed: int
    no_evidence: int
    whole: int


def factscore(reports: Sequence[FactReport], gamma: float | None = GAMMA) -> FactScore:
    """The scores of a corpus: the mean of its answers' scores, not the share of all its facts.

    disputed, no_evidence: facts about which documents contradict each other, and for which nothing was found;
    whole: sentences that could not be taken apart.
    """
    if not reports:
        raise ValueError("no answers to score")
    said = [report for report in reports if report.responds]
    atoms = [atom for report in reports for atom in report.atoms]
    return FactScore(
        precision=_mean([report.precision for report in said]),
        score=_mean([report.score(gamma) for report in said]),
        facts_per_response=_mean([len(report.atoms) for report in said]),
        correct=sum(report.correct for report in reports) / len(reports),
        errors=sum(report.errors for report in reports) / len(reports),
        respond_ratio=len(said) / len(reports),
        words=sum(report.words for report in reports) / len(reports),
        answers=len(reports),
        abstained=sum(report.abstained for report in reports),
        disputed=sum(report.disputed for report in reports),
        no_evidence=sum(not atom.evidence for atom in atoms),
        whole=sum(report.whole for report in reports),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
