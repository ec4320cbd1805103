"""The commands that train on preferences and rewards. Loads torch only when one of them runs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maypole.align.opening import open_model
from maypole.align.preference_options import WITHOUT_REFERENCE, PreferenceOptions
from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import ConfigError
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from maypole.data.rows import RowType
    from maypole.models.language_model import LanguageModel
    from maypole.train.ranks import Ranks

PREVIEWED = 1000
"""Rows that ``--dry-run`` turns into tokens."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(RunOptions, ModelOptions):
    """What is trained on which rows, and where it goes."""

    model: str = setting(input=True, help="model directory or hub id")
    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with prompt, chosen and rejected")
    out: Path = setting(key=False, help="directory of the result")
    mix: tuple[float, ...] = setting((), help="one weight per source: its share of the rows; none: one after the other")
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: prompt=question")
    eval_data: tuple[str, ...] = setting((), input=True, help="rows to measure on, never to learn from")
    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")
    train: TrainConfig = setting(factory=TrainConfig)

    def __post_init__(self) -> None:
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as prompt=question")
        pass_on(PairOptions, self)

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}


@dataclass(frozen=True, kw_only=True)
class RewardOptions(PairOptions):
    """Which judge is learnt."""

    type: Literal["bradley-terry", "pair"] = setting(
        "bradley-terry", help="bradley-terry: a score for an answer; pair: which of two answers is better"
    )
    center: float = setting(0.0, help="weight of (sum of both scores)², which holds scores around 0; 0.01 is usual")
    held_out: float = setting(0.1, help="without --eval-data: share of the prompts to measure on")

    def __post_init__(self) -> None:
        check("type", self.type, ("bradley-terry", "pair"))
        if self.center < 0 or (self.center and self.type == "pair"):
            raise ConfigError("center", self.center, "0 or more, and 0 with --type pair")
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out", self.held_out, "above 0 and below 1")
        pass_on(RewardOptions, self)


@dataclass(frozen=True, kw_only=True)
class DpoOptions(PreferenceOptions, PairOptions):
    """Which loss, and what the model is held to."""

    reference: str | None = setting(
        None, input=True, help="model directory or hub id to hold to; default: the model before its first step"
    )

    def __post_init__(self) -> None:
        pass_on(DpoOptions, self)
        if self.reference is not None and self.loss in WITHOUT_REFERENCE:
            raise ConfigError("reference", self.reference, f"nothing with --loss {self.loss}, which has none")
        if self.train.eval_steps and not self.eval_data:
            raise ConfigError("train.eval_steps", self.train.eval_steps, "0 without --eval-data")

    @property
    def preference(self) -> PreferenceOptions:
        """The loss alone."""
        return PreferenceOptions(**{f.name: getattr(self, f.name) for f in fields(PreferenceOptions)})


def dpo(config: DpoOptions) -> Artifact | DryRun:
    """Train a model on preferences: DPO, or another loss on chosen and rejected answers.

    Rows have prompt, chosen and rejected, strings or messages; with --loss kto prompt, completion and label. The model
    is held to what it was before its first step, which takes no second copy of it: its log-probs are computed once and
    kept (--train.reference-logps cached), or, where an adapter learns, asked for as they are needed (live). A new
    adapter is then left out, one that goes on learning held to a frozen copy. The result is a checkpoint or adapter;
    the same command continues an interrupted run.

        maypole align dpo --model base --data pairs.jsonl --train.learning-rate 1e-6 --out tuned
        maypole align dpo --loss ipo --beta 0.2 --model base --data pairs.jsonl --train.peft.type lora --out tuned
    """
    from maypole.align.preference import objective_of
    from maypole.train.ranks import join

    required(config, "data")

    def begin() -> Artifact:
        return Artifact.open(
            config.out, kind="dpo", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
        )

    ranks = join()
    with ranks.together():
        objective = objective_of(config.preference)
        if config.dry_run:
            return _plan_dpo(config)
        with ranks.open(begin) as artifact:
            if artifact.finished:
                return artifact
            from maypole.data import read
            from maypole.train.fit import fit
            from maypole.train.result import save_result

            names, mix, seed, kind = config.names, config.mix or None, config.seed, _rows_of(config)
            rows = ranks.in_turn(lambda: read(config.data, kind, columns=names, mix=mix, seed=seed))
            measured = None
            if config.eval_data:
                measured = _prepared(ranks.in_turn(lambda: read(config.eval_data, kind, columns=names)), config)
            lm = _load(config, ranks)
            reference = _reference(config, lm, ranks) if "reference" in objective.needs else None
            fit(
                lm, _prepared(rows, config), objective, config.train, out=artifact, seed=seed, reference=reference,
                eval_rows=measured,
            )  # fmt: skip
            ranks.lead(lambda: save_result(lm, artifact, artifact.manifest["metrics"]))
            return ranks.finish(artifact)


def reward(config: RewardOptions) -> Artifact | DryRun:
    """Train a judge on pairs: a reward model, or a model that compares two answers.

    Rows have prompt, chosen and rejected, strings or messages, and perhaps a margin. A model that scores texts already
    goes on learning. Its accuracy on pairs that it has not seen is measured at the end. The result is a directory that
    --judge takes; the same command continues an interrupted run.

        maypole align reward --model base --data pairs.jsonl --train.learning-rate 1e-5 --out judge
        maypole align reward --type pair --model base --data pairs.jsonl --train.peft.type lora --out judge
    """
    from maypole.train.ranks import join

    required(config, "data")

    def begin() -> Artifact:
        return Artifact.open(
            config.out, kind="reward", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
        )

    ranks = join()
    with ranks.together():
        if config.dry_run:
            return _plan(config)
        with ranks.open(begin) as artifact:
            if artifact.finished:
                return artifact
            from maypole.align import reward as judges
            from maypole.data import PAIR, read
            from maypole.train.fit import fit
            from maypole.train.result import save_result

            names, mix, seed = config.names, config.mix or None, config.seed
            rows = ranks.in_turn(lambda: read(config.data, PAIR, columns=names, mix=mix, seed=seed))
            if config.eval_data:
                measured = ranks.in_turn(lambda: read(config.eval_data, PAIR, columns=names))
            else:
                rows, measured = judges.hold_out(rows, config.held_out, seed=seed)
            keep_base = artifact if config.train.peft is not None else None
            lm = judges.untrained(_begun(config, ranks), config.type, seed=seed, keep_base=keep_base, ranks=ranks)
            objective = judges.objective_of(config.type, rows, lm, center=config.center)
            fit(lm, rows, objective, config.train, out=artifact, seed=seed, eval_rows=measured)

            def finish() -> None:
                found = judges.measure(lm, measured, objective, config.train, seed=seed)
                artifact.manifest["metrics"] |= judges.facts(found)
                save_result(lm, artifact, artifact.manifest["metrics"])
                judges.describe(artifact, objective)

            ranks.lead(finish)
            return ranks.finish(artifact)


def _inputs(config: PairOptions) -> dict[str, object]:
    """What hub ids name now: branches move on, a result stays what it was."""
    from maypole.data import sources
    from maypole.models import hub

    return hub.commits(config) | sources.commits(config)


def _plan(config: RewardOptions) -> DryRun:
    found = _found("reward", config)
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from maypole.align import reward as judges
    from maypole.data import PAIR
    from maypole.data.pair_question import FILE
    from maypole.train.dry_run import dry_run
    from maypole.train.ranks import ALONE

    rows, count = _first_rows(config, PAIR)
    if not config.eval_data:
        learnt, _ = judges.hold_out(rows, config.held_out, seed=config.seed)
        rows, count = learnt, round(count * len(learnt) / len(rows))
    lm = judges.untrained(_begun(config, ALONE), config.type, seed=config.seed)
    objective = judges.objective_of(config.type, rows, lm, center=config.center)
    plan = dry_run(lm, rows, count, objective, config.train, seed=config.seed)
    if config.type == "pair":
        plan = replace(plan, files=(*plan.files, FILE))
    return plan if found is None else replace(plan, reuses=(str(found.path),))


def _plan_dpo(config: DpoOptions) -> DryRun:
    found = _found("dpo", config)
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from maypole.align.preference import objective_of
    from maypole.train.dry_run import dry_run
    from maypole.train.ranks import ALONE

    rows, count = _first_rows(config, _rows_of(config))
    objective = objective_of(config.preference)
    lm = _load(config, ALONE)
    reference = _reference(config, lm, ALONE) if "reference" in objective.needs else None
    plan = dry_run(
        lm, _prepared(rows, config), count, objective, config.train, seed=config.seed, reference=reference
    )  # fmt: skip
    return plan if found is None else replace(plan, reuses=(str(found.path),))


def _found(kind: str, config: PairOptions) -> Artifact | None:
    return Artifact.find(
        config.out, kind=kind, config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    )


def _first_rows(config: PairOptions, kind: "RowType") -> tuple["Dataset", int]:
    """The rows that a dry run sees, and how many there are in all; those of --eval-data are looked at too."""
    from datasets import Dataset

    from maypole.data import preview, stream

    mix = config.mix or None
    first = preview(config.data, kind, PREVIEWED, columns=config.names, mix=mix, seed=config.seed).rows
    count = len(first)
    if count == PREVIEWED and config.train.max_steps < 0:
        every = stream(config.data, kind, columns=config.names, mix=mix, seed=config.seed)
        count = sum(len(batch) for batch in every)
    if config.eval_data:
        preview(config.eval_data, kind, PREVIEWED, columns=config.names)
    return Dataset.from_list([dict(row) for row in first]), count


def _rows_of(config: DpoOptions) -> "RowType":
    from maypole.data import PAIR, UNPAIRED

    return UNPAIRED if config.loss == "kto" else PAIR


def _prepared(rows: "Dataset", config: DpoOptions) -> "Dataset":
    from maypole.align.unpaired import with_other_answers

    return with_other_answers(rows) if config.loss == "kto" else rows


def _reference(config: DpoOptions, lm: "LanguageModel", ranks: "Ranks") -> "LanguageModel | Literal['initial']":
    """What `fit` holds `lm` to. A second model is in memory only where one is asked for, or all weights learn live."""
    from maypole.models.loading import load

    named = config.reference
    base = named is not None and (str(Path(named).resolve()) if Path(named).is_dir() else named) == lm.name
    if named is None or (base and not lm.adapters):
        copied = config.train.reference_logps == "live" and config.train.peft is None and not lm.adapters
        return _load(config, ranks) if copied else "initial"
    if base and config.train.peft is None:
        return lm.with_adapter(None)
    return load(
        named,
        device=config.device or ("cpu" if ranks.sharded else None),
        dtype=config.dtype,
        quantization=config.quantization,  # pyright: ignore[reportArgumentType]
        trust_remote_code=config.trust_remote_code,
    )


def _load(config: PairOptions, ranks: "Ranks") -> "LanguageModel":
    return open_model(config, config.chat_template, elsewhere="cpu" if ranks.sharded else None)


def _begun(config: RewardOptions, ranks: "Ranks") -> "LanguageModel":
    """The model, or the judge, that goes on learning to judge."""
    from maypole.evaluate.judges import scores_texts
    from maypole.models.hub import local

    named = config.adapter or config.model
    revision = None if config.adapter else config.revision
    scores = scores_texts(local(named, revision=revision, code=config.trust_remote_code), named)
    return open_model(
        config, config.chat_template, elsewhere="cpu" if ranks.sharded else None, task="score" if scores else "causal"
    )
