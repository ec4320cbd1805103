"""The commands that measure: perplexity, tasks, win rates. Loads torch only when one of them runs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import ConfigError, DataError, rows_in
from maypole.core.identity import plain

if TYPE_CHECKING:
    from maypole.core.statistics import Interval
    from maypole.data.rows import RowType

ROWS = ("text", "chat", "completion")
METRICS = ("exact_match", "f1", "rouge_l")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions, RunOptions):
    """What every measurement reads."""

    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with the rows")
    limit: int | None = setting(None, help="only the first rows")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit", self.limit, "a whole number above 0")
        pass_on(EvaluateOptions, self)


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(EvaluateOptions):
    """How documents are read."""

    model: str = setting(input=True, help="model directory or hub id")
    rows: str = setting("text", help="what the rows hold: text, chat or completion")
    max_length: int | None = setting(None, help="tokens read at once; default: the model's context")
    overlap: int = setting(0, help="tokens of context before each further window of a long document")

    def __post_init__(self) -> None:
        check("rows", self.rows, ROWS)
        pass_on(PerplexityOptions, self)


@dataclass(frozen=True, kw_only=True)
class TasksOptions(EvaluateOptions):
    """How questions are asked and answers compared."""

    model: str = setting(input=True, help="model directory or hub id")
    metrics: tuple[str, ...] = setting(("exact_match", "f1"), help="exact_match, f1, rouge_l")
    max_tokens: int = setting(64, help="most tokens of an answer")
    temperature: float = setting(0.0, help="0 is greedy")
    stop: tuple[str, ...] = setting((), help="strings that end an answer")

    def __post_init__(self) -> None:
        for name in self.metrics:
            check("metrics", name, METRICS)
        pass_on(TasksOptions, self)


@dataclass(frozen=True, kw_only=True)
class WinrateOptions(EvaluateOptions):
    """Whose answers are compared, and by whom."""

    judge: tuple[str, ...] = setting(input=True, help="file.py:function, or a judge's directory; once or several times")
    judge_weights: tuple[float, ...] = setting((), help="one weight per judge")
    against: str | None = setting(None, input=True, help="the rival model; default: --model without its adapter")
    against_adapter: str | None = setting(None, input=True, help="the rival's adapter")
    a: str = setting("a", help="without --model: the column with our answers")
    b: str = setting("b", help="without --model: the column with the rival's")
    max_tokens: int = setting(256, help="most tokens of an answer")
    temperature: float = setting(0.0, help="0 is greedy")
    on_judge_error: Literal["stop", "skip-row"] = setting("stop", help="a judge that fails: stop, or leave out the row")

    def __post_init__(self) -> None:
        check("on_judge_error", self.on_judge_error, ("stop", "skip-row"))
        if self.judge_weights and len(self.judge_weights) != len(self.judge):
            raise ConfigError("judge_weights", self.judge_weights, f"one per judge, here {len(self.judge)}")
        pass_on(WinrateOptions, self)


@dataclass(frozen=True)
class PerplexityReport:
    """Perplexity with its 95 % interval over documents."""

    model: str
    perplexity: float
    low: float
    high: float
    nats_per_token: float
    documents: int
    tokens: int
    dropped: int


@dataclass(frozen=True)
class MetricRow:
    """The mean of one metric over the rows of a task, with its 95 % interval."""

    task: str
    metric: str
    mean: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class TasksReport:
    """Scores by metric, over all rows first and then by task."""

    model: str
    scores: tuple[MetricRow, ...]


@dataclass(frozen=True)
class WinrateReport:
    """How often ours beat theirs, ties counting half, with the 95 % interval over prompts."""

    ours: str
    theirs: str
    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    left_out: int


Rows = Sequence[Mapping[str, Any]]
Measured = tuple[Any, Iterable[Mapping[str, Any]]]
"""A report and one line for each item behind it."""


def perplexity(config: PerplexityOptions) -> PerplexityReport | Artifact | DryRun:
    """Measure how surprised a model is by text.

    Every token is scored once; documents longer than the context are cut into windows. Chats count where an assistant
    speaks, completions after their prompt. With --out the nll of every document is kept.

        maypole evaluate perplexity --model base --data notes.jsonl
        maypole evaluate perplexity --model base --adapter adapted --data notes/ --out perplexity
    """
    from maypole.data import CHAT, COMPLETION, TEXT

    required(config, "data")
    kind = {"text": TEXT, "chat": CHAT, "completion": COMPLETION}[config.rows]

    def measure() -> Measured:
        from maypole.core.progress import track
        from maypole.engine.opening import open_engine
        from maypole.evaluate.perplexity import perplexity as measured

        rows = rows_of(config, kind)
        with track("perplexity", len(rows), "documents") as step:
            found = measured(
                open_engine(config),
                rows,
                max_length=config.max_length,
                overlap=config.overlap,
                seed=config.seed,
                step=step,
            )
        tokens = int(found.tokens.sum())
        report = PerplexityReport(
            model=_name(config),
            perplexity=found.perplexity,
            low=found.interval.low,
            high=found.interval.high,
            nats_per_token=float(found.nll.sum()) / tokens,
            documents=len(found.nll),
            tokens=tokens,
            dropped=found.dropped,
        )
        items = zip(found.documents.tolist(), found.nll.tolist(), found.tokens.tolist())
        return report, ({"row": row, "nll": nll, "tokens": count} for row, nll, count in items)

    return measurement("perplexity", config, kind, measure)


def tasks(config: TasksOptions) -> TasksReport | Artifact | DryRun:
    """Ask a model questions with known answers and score what it says.

    Rows have prompt (or question) and answers (or answer); a column named task splits the result. With --out every
    answer and its scores are kept.

        maypole evaluate tasks --model base --data questions.jsonl
        maypole evaluate tasks --model base --data questions.jsonl --metrics rouge_l --max-tokens 128 --out scores
    """
    required(config, "data")

    def measure() -> Measured:
        from maypole.core.progress import track
        from maypole.engine import Sampling
        from maypole.engine.opening import open_engine
        from maypole.evaluate.tasks import task_scores

        rows = rows_of(config, None)
        sampling = Sampling(
            max_tokens=config.max_tokens, temperature=config.temperature, stop=config.stop, seed=config.seed
        )
        with track("tasks", len(rows), "questions") as step:
            found = task_scores(
                open_engine(config), rows, metrics=config.metrics, sampling=sampling, seed=config.seed, step=step
            )
        groups = [("", found.scores), *found.by_task.items()]
        scores = tuple(
            MetricRow(task or "all", metric, s.mean, s.interval.low, s.interval.high, len(s.items))
            for task, by_metric in groups
            for metric, s in by_metric.items()
        )
        items = (
            {"row": i, "prediction": text, **{m: float(s.items[i]) for m, s in found.scores.items()}}
            for i, text in enumerate(found.predictions)
        )
        return TasksReport(_name(config), scores), items

    def check_rows(rows: Rows) -> None:
        from maypole.evaluate.tasks import check_answers, prompt_of

        for i, row in enumerate(rows):
            prompt_of(row, i)
        check_answers(rows)

    return measurement("tasks", config, None, measure, check_rows)


def winrate(config: WinrateOptions) -> WinrateReport | Artifact | DryRun:
    """Let a judge compare two models' answers to the same prompts.

    The rival is --against, or the model without its adapter. Without --model the rows' columns a and b are compared.

        maypole evaluate winrate --model base --adapter aligned --data prompts.jsonl --judge judge.py:prefers
        maypole evaluate winrate --data answers.jsonl --a ours --b theirs --judge judge.py:score
    """
    required(config, "data", "judge")

    def measure() -> Measured:
        from maypole.evaluate import judges
        from maypole.evaluate.win_rate import outcomes, summary

        judge = judges.load_all(config.judge, config.judge_weights or None)
        rows = rows_of(config, None)
        prompts = _column(rows, "prompt")
        if config.model is None:
            a, b = _column(rows, config.a), _column(rows, config.b)
            names = config.a, config.b
        else:
            a, b = _answers(config, prompts)
            names = _name(config), config.against_adapter or config.against or config.model
        found = outcomes(a, b, judge, prompts, on_judge_error=config.on_judge_error)
        result = summary(found, seed=config.seed)
        report = WinrateReport(
            *names, result.rate, *_ends(result.interval), result.wins, result.ties, result.losses, result.left_out
        )
        items = (
            {"prompt": p, "a": x, "b": y, "outcome": None if o != o else o}
            for p, x, y, o in zip(prompts, a, b, found.tolist())
        )
        return report, items

    def check_rows(rows: Rows) -> None:
        from maypole.evaluate import judges
        from maypole.models.loadable import check_loadable

        for name in ("prompt",) if config.model else ("prompt", config.a, config.b):
            _column(rows, name)
        judges.load_all(config.judge, config.judge_weights or None)
        rival = config.against or config.model
        if rival:
            check_loadable(rival, adapter=config.against_adapter)

    return measurement("winrate", config, None, measure, check_rows)


def _answers(config: WinrateOptions, prompts: Sequence[Any]) -> tuple[list[str], list[str]]:
    from maypole.core.seeds import derive
    from maypole.engine import NO_ADAPTER, Request, Sampling
    from maypole.engine.opening import open_engine

    def ask(engine: Any, adapter: str | None) -> list[str]:
        requests = [
            Request(
                p,
                Sampling(
                    max_tokens=config.max_tokens, temperature=config.temperature, seed=derive(config.seed, "winrate", i)
                ),
                adapter,
            )
            for i, p in enumerate(prompts)
        ]
        return [output.text for output in engine.generate(requests)]

    ours = open_engine(config)
    if config.against is None and config.against_adapter is None:
        return ask(ours, None), ask(ours, NO_ADAPTER)
    answers = ask(ours, None)
    rival = open_engine(config, model=config.against or config.model, adapter=config.against_adapter, revision=None)
    return answers, ask(rival, None)


def measurement(
    kind: str,
    config: EvaluateOptions,
    row_type: "RowType | None",
    measure: Callable[[], Measured],
    check_rows: Callable[[Rows], object] = len,
) -> Any:
    """The report; or with --out an artifact with it and its items; or what would be done.

    `check_rows` raises where rows, or what they are measured with, would not do; a dry run asks it.
    """
    if config.dry_run:
        from maypole.models.loadable import check_loadable

        rows = rows_of(config, row_type, 1000)
        with rows_in(*config.data):
            check_rows(rows)
        if config.model is not None:
            check_loadable(config.model, adapter=config.adapter, revision=config.revision)
        return DryRun(rows_kept=len(rows), files=("report.json", "items.jsonl") if config.out else ())
    if config.out is None:
        with rows_in(*config.data):
            return measure()[0]
    from maypole.data import sources
    from maypole.models import hub

    inputs = hub.commits(config) | sources.commits(config)
    with Artifact.open(
        config.out, kind=kind, config=config, inputs=inputs, seed=config.seed, force=config.force
    ) as artifact:
        if artifact.finished:
            return artifact
        with rows_in(*config.data):
            report, items = measure()
        numbers: Any = plain(report)
        lines = [json.dumps(plain(item), ensure_ascii=False) + "\n" for item in items]
        write_atomic(artifact.path / "items.jsonl", "".join(lines))
        write_atomic(artifact.path / "report.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
        return artifact.finish({name: value for name, value in numbers.items() if isinstance(value, int | float)})


def rows_of(config: EvaluateOptions, row_type: "RowType | None", limit: int | None = None) -> Rows:
    """The rows of ``--data``, at most `limit`; without a row type as they stand."""
    from maypole.data import read, stream

    wanted = min(config.limit or 2**62, limit or 2**62)
    if row_type is not None:
        rows: Any = read(list(config.data), row_type)
        return rows.select(range(min(wanted, len(rows)))) if wanted < len(rows) else rows
    every = (row for batch in stream(list(config.data)) for row in batch.to_pylist())
    found = list(islice(every, wanted))
    if not found:
        raise DataError("no rows", file=config.data[0])
    return found


def _column(rows: Rows, name: str) -> list[Any]:
    for i, row in enumerate(rows):
        if not row.get(name):
            raise DataError(f"the field is missing; found {', '.join(row)}", row=i + 1, field=name)
    return [row[name] for row in rows]


def _name(config: EvaluateOptions) -> str:
    return Path(config.adapter or config.model or "").as_posix()


def _ends(interval: "Interval") -> tuple[float, float]:
    return interval.low, interval.high
