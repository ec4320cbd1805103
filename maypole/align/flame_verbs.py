"""The command that trains a model not to invent. Loads torch only when it runs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maypole.align.flame_options import FlameConfig
from maypole.align.opening import open_model
from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, pass_on, required, setting
from maypole.core.errors import ConfigError
from maypole.evaluate.fact_options import FactOptions, open_checker, open_evidence, open_reader

if TYPE_CHECKING:
    from datasets import Dataset

    from maypole.align.fact_based import Classify
    from maypole.align.judging import Judge
    from maypole.data.rows import RowType
    from maypole.engine import Engine

PREVIEWED = 1000
"""Rows that ``--dry-run`` looks at."""


@dataclass(frozen=True, kw_only=True)
class FlameOptions(FlameConfig, FactOptions, RunOptions, ModelOptions):
    """What is learnt, whose answers are truer, and where the result goes."""

    model: str = setting(input=True, help="directory or hub id of a model that no one has fine-tuned yet")
    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with instructions and answers")
    judge: tuple[str, ...] = setting(
        input=True, help="how well an instruction is followed: file.py:function or a judge's directory"
    )
    out: Path = setting(key=False, help="directory of the result")
    prompts: tuple[str, ...] = setting((), input=True, help="prompts to make pairs of; default: the instructions")
    judge_weights: tuple[float, ...] = setting((), help="one weight per judge")
    classify: str | None = setting(
        None, input=True, help="file.py:function that says which instructions ask for facts; default: ask the checker"
    )
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: prompt=question")
    eval_data: tuple[str, ...] = setting((), input=True, help="prompts to check answers to, before and after")
    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")

    def __post_init__(self) -> None:
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as prompt=question")
        if self.judge_weights and len(self.judge_weights) != len(self.judge):
            raise ConfigError("judge_weights", self.judge_weights, f"one per judge, here {len(self.judge)}")
        if self.own_checker and self.classify is None:
            raise ConfigError("classify", None, "file.py:function, beside a checker of your own")
        pass_on(FlameOptions, self)

    @property
    def flame(self) -> FlameConfig:
        """The method alone."""
        return FlameConfig(**{f.name: getattr(self, f.name) for f in fields(FlameConfig)})

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}


def flame(config: FlameOptions) -> Artifact | DryRun:
    """Fine-tune a model and train its preferences so that it learns to answer and not to invent.

    Instructions that ask for facts are answered by the model itself, as it is, after a few demonstrations; it is
    fine-tuned on those and on the given answers to all others. Of its own answers to prompts the better ones are then
    preferred, by --judge, and, where facts are asked for, also the truer ones: taken apart and checked against
    --evidence. With --eval-data answers are checked before, between and after. All of it is one result, with the rows
    learnt in sft.parquet and pairs.parquet; the same command continues an interrupted run.

        maypole align flame --model base --data asked.jsonl --judge judge.py:score --evidence known.jsonl --out true
        maypole align flame --model base --data asked.jsonl --judge judge.py:score --evidence find.py:search --out true
    """
    required(config, "data", "judge")
    if config.dry_run:
        return _plan(config)
    from maypole.align.flame import flame as run
    from maypole.data import COMPLETION, PROMPT
    from maypole.train.result import save_result

    judge = _judge(config)
    with Artifact.open(
        config.out, kind="flame", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    ) as artifact:
        if artifact.finished:
            return artifact
        data = _read(config, config.data, COMPLETION)
        prompts = _prompts(config, data)
        measured = _read(config, config.eval_data, PROMPT) if config.eval_data else None
        engine = None if config.own_checker else open_reader(config, config)
        checker, classify = open_checker(config, engine), _classifier(config, engine)
        lm = open_model(config, config.chat_template)
        run(
            lm, data, prompts, judge, checker, classify, config.flame, out=artifact, seed=config.seed,
            eval_prompts=measured,
        )  # fmt: skip
        save_result(lm, artifact, artifact.manifest["metrics"])
        return artifact.finish()


def _classifier(config: FlameOptions, engine: "Engine | None") -> "Classify":
    if config.classify is not None:
        from maypole.evaluate.judges import function_of

        return function_of(config.classify)
    from maypole.align.fact_based import ModelClassifier
    from maypole.evaluate.fact_cache import FactCache

    assert engine is not None
    return ModelClassifier(engine, FactCache())


def _judge(config: FlameOptions) -> "Judge":
    from maypole.evaluate import judges

    return judges.load_all(config.judge, config.judge_weights or None)


def _prompts(config: FlameOptions, data: "Dataset") -> "Dataset":
    from maypole.data import PROMPT

    if config.prompts:
        return _read(config, config.prompts, PROMPT)
    return data.remove_columns(["completion"])


def _read(config: FlameOptions, sources: tuple[str, ...], kind: "RowType") -> "Dataset":
    from maypole.data import read

    return read(sources, kind, columns=config.names)


def _inputs(config: FlameOptions) -> dict[str, object]:
    """What hub ids name now: branches move on, a result stays what it was."""
    from maypole.data import sources
    from maypole.models import hub

    return hub.commits(config) | sources.commits(config)


def _plan(config: FlameOptions) -> DryRun:
    """What both trainings would take if no instruction asked for facts; drawing and checking are not known before."""
    found = Artifact.find(
        config.out, kind="flame", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    )
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from maypole.align.online import imagined
    from maypole.align.preference import Pairs
    from maypole.align.preference_options import PreferenceOptions
    from maypole.align.rlhf_workflow import IterativeDPO
    from maypole.data import COMPLETION, PROMPT
    from maypole.engine import Sampling
    from maypole.train.dry_run import dry_run
    from maypole.train.supervised import Completions

    _judge(config)
    if not config.own_checker:
        open_evidence(config)
    data = _read(config, config.data, COMPLETION)
    prompts = _prompts(config, data)
    if config.eval_data:
        _read(config, config.eval_data, PROMPT)
    lm = open_model(config, config.chat_template)
    method = IterativeDPO(sampling=Sampling(n=config.n, max_tokens=config.max_tokens))
    drawn = prompts.select(range(min(len(prompts), PREVIEWED)))
    pairs = method.rows(imagined(lm, drawn, method, seed=config.seed))
    rows = data.select(range(min(len(data), PREVIEWED)))
    plans = [
        dry_run(lm, rows, len(data), Completions(), config.sft, seed=config.seed),
        dry_run(
            open_model(config, config.chat_template), pairs, len(prompts),
            Pairs(PreferenceOptions(beta=config.beta)), replace(config.dpo, peft=config.sft.peft), seed=config.seed,
        ),
    ]  # fmt: skip
    peaks = [plan.peak_memory_bytes for plan in plans if plan.peak_memory_bytes is not None]
    return replace(
        plans[0],
        steps=sum(plan.steps or 0 for plan in plans),
        minutes=sum(plan.minutes or 0.0 for plan in plans),
        peak_memory_bytes=max(peaks, default=None),
        files=(*plans[1].files, "sft.parquet", "sft", "pairs.parquet", *(["facts.json"] if config.eval_data else [])),
        reuses=() if found is None else (str(found.path),),
    )
