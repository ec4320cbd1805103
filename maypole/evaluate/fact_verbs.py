"""The command that checks the facts in answers. Loads torch only when it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, pass_on, required, setting
from maypole.core.errors import ConfigError, DataError
from maypole.evaluate.fact_options import FactOptions
from maypole.evaluate.fact_report import FactReport, FactScore, factscore
from maypole.evaluate.verbs import EvaluateOptions, Measured, Rows, measurement, rows_of

TOPIC, ANSWER = ("topic", "prompt", "question"), ("output", "completion", "answer")
AT_ONCE = 128
"""Answers that are checked together."""


@dataclass(frozen=True, kw_only=True)
class FactsOptions(FactOptions, EvaluateOptions):
    """Which answers are checked, by whom and against what."""

    model: str | None = setting(None, input=True, help="model that takes answers apart and reads evidence")
    gamma: float = setting(10.0, help="facts from which the score of an answer is no longer lowered")

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ConfigError("gamma", self.gamma, "above 0")
        pass_on(FactsOptions, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsReport(FactScore):
    """The scores, by whom, and the 95 % interval of the precision over answers that state a fact."""

    checker: str
    low: float | None
    high: float | None


def facts(config: FactsOptions) -> FactsReport | Artifact | DryRun:
    """Check the facts that answers state against documents, one by one.

    Rows have topic (or prompt, question) and output (or completion, answer). A model takes every answer apart and says
    of each fact whether the passages found for it support it, contradict it or do neither. Precision is the supported
    share, the mean over answers that state anything; score is lowered where there are few facts. With --out every fact
    is kept with its verdict and its passages.

        maypole evaluate facts --model base --data answers.jsonl --evidence known.jsonl
        maypole evaluate facts --data answers.jsonl --checker facts.py:checker --out checked
    """
    required(config, "data")
    if config.checker is None:
        required(config, "model")

    def measure() -> Measured:
        from dataclasses import asdict

        import numpy as np

        from maypole.core.progress import track
        from maypole.core.statistics import bootstrap
        from maypole.evaluate.fact_options import open_checker, open_reader

        rows = rows_of(config, None)
        topics, answers = zip(*_answers(rows))
        checker = open_checker(config, None if config.own_checker else open_reader(config, config))
        found: list[FactReport] = []
        with track("facts", len(rows), "answers") as step:
            for begin in range(0, len(rows), AT_ONCE):
                some = slice(begin, begin + AT_ONCE)
                found += checker.check(topics[some], answers[some])
                step(len(topics[some]))
        numbers = asdict(factscore(found, config.gamma))
        known = [report.precision for report in found if report.precision is not None]
        interval = bootstrap(np.array(known), seed=config.seed) if known else None
        ends = {"low": interval.low, "high": interval.high} if interval else {"low": None, "high": None}
        report = FactsReport(checker=config.checker or str(config.model), **ends, **numbers)
        return report, (_item(i, answer, one) for i, (answer, one) in enumerate(zip(answers, found)))

    return measurement("facts", config, None, measure, _answers)


def _answers(rows: Rows) -> list[tuple[str, str]]:
    return [_answer(row, i) for i, row in enumerate(rows)]


def _answer(row: Mapping[str, Any], index: int) -> tuple[str, str]:
    found: list[str] = []
    for names in (TOPIC, ANSWER):
        name = next((name for name in names if name in row), None)
        if name is None:
            raise DataError(f"none of {', '.join(names)} is there; found {', '.join(row)}", row=index + 1)
        if not isinstance(row[name], str):
            what = f"expected a string, found {type(row[name]).__name__}"
            raise DataError(what, row=index + 1, field=name, expected='"" where nothing was answered')
        found.append(row[name])
    return found[0], found[1]


def _item(row: int, answer: str, report: Any) -> dict[str, Any]:
    facts: Sequence[dict[str, Any]] = [
        {"text": atom.text, "verdict": atom.verdict, "evidence": list(atom.evidence)} for atom in report.atoms
    ]
    return {
        "row": row, "topic": report.topic, "answer": answer, "precision": report.precision, "correct": report.correct,
        "errors": report.errors, "abstained": report.abstained, "whole": report.whole, "facts": facts,
    }  # fmt: skip
