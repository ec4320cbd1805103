"""The commands that train on preferences and rewards. Loads torch only when one of them runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import ConfigError, UserError
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from maypole.models.language_model import LanguageModel
    from maypole.train.ranks import Ranks

PREVIEWED = 1000
"""Rows that ``--dry-run`` turns into tokens."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions(RunOptions, ModelOptions):
    """Which judge is learnt from which pairs."""

    model: str = setting(input=True, help="model directory or hub id")
    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with prompt, chosen and rejected")
    out: Path = setting(key=False, help="directory of the result")
    type: Literal["bradley-terry", "pair"] = setting(
        "bradley-terry", help="bradley-terry: a score for an answer; pair: which of two answers is better"
    )
    center: float = setting(0.0, help="weight of (sum of both scores)², which holds scores around 0; 0.01 is usual")
    mix: tuple[float, ...] = setting((), help="one weight per source: its share of the rows; none: one after the other")
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: prompt=question")
    eval_data: tuple[str, ...] = setting((), input=True, help="pairs to measure the judge on, never to learn from")
    held_out: float = setting(0.1, help="without --eval-data: share of the prompts to measure on")
    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")
    train: TrainConfig = setting(factory=TrainConfig)

    def __post_init__(self) -> None:
        check("type", self.type, ("bradley-terry", "pair"))
        if self.center < 0 or (self.center and self.type == "pair"):
            raise ConfigError("center", self.center, "0 or more, and 0 with --type pair")
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out", self.held_out, "above 0 and below 1")
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as prompt=question")
        pass_on(RewardOptions, self)

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}


def reward(config: RewardOptions) -> Artifact | DryRun:
    """Train a judge on pairs: a reward model, or a model that compares two answers.

    Rows have prompt, chosen and rejected, strings or messages, and perhaps a margin. Its accuracy on pairs that it has
    not seen is measured at the end. The result is a directory that --judge takes; the same command continues an
    interrupted run.

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
            lm = judges.untrained(_load(config, ranks), config.type, seed=seed, keep_base=keep_base, ranks=ranks)
            objective = judges.objective_of(config.type, rows, lm, center=config.center)
            fit(lm, rows, objective, config.train, out=artifact, seed=seed, eval_rows=measured)

            def finish() -> None:
                found = judges.measure(lm, measured, objective, config.train, seed=seed)
                artifact.manifest["metrics"] |= judges.facts(found)
                save_result(lm, artifact, artifact.manifest["metrics"])
                judges.describe(artifact, objective)

            ranks.lead(finish)
            return ranks.finish(artifact)


def _inputs(config: RewardOptions) -> dict[str, object]:
    """What hub ids name now: branches move on, a result stays what it was."""
    from maypole.data import sources
    from maypole.models import hub

    return hub.commits(config) | sources.commits(config)


def _plan(config: RewardOptions) -> DryRun:
    found = Artifact.find(
        config.out, kind="reward", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    )
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from datasets import Dataset

    from maypole.align import reward as judges
    from maypole.data import PAIR, preview, stream
    from maypole.data.pair_question import FILE
    from maypole.train.dry_run import dry_run
    from maypole.train.ranks import ALONE

    mix = config.mix or None
    first = preview(config.data, PAIR, PREVIEWED, columns=config.names, mix=mix, seed=config.seed).rows
    count = len(first)
    if count == PREVIEWED and config.train.max_steps < 0:
        every = stream(config.data, PAIR, columns=config.names, mix=mix, seed=config.seed)
        count = sum(len(batch) for batch in every)
    rows = Dataset.from_list([dict(row) for row in first])
    if config.eval_data:
        preview(config.eval_data, PAIR, PREVIEWED, columns=config.names)
    else:
        learnt, _ = judges.hold_out(rows, config.held_out, seed=config.seed)
        rows, count = learnt, round(count * len(learnt) / len(rows))
    lm = judges.untrained(_load(config, ALONE), config.type, seed=config.seed)
    objective = judges.objective_of(config.type, rows, lm, center=config.center)
    plan = dry_run(lm, rows, count, objective, config.train, seed=config.seed)
    if config.type == "pair":
        plan = replace(plan, files=(*plan.files, FILE))
    return plan if found is None else replace(plan, reuses=(str(found.path),))


def _load(config: RewardOptions, ranks: "Ranks") -> "LanguageModel":
    from maypole.models.loading import load

    lm = load(
        config.model,
        adapter=config.adapter,
        device=config.device or ("cpu" if ranks.sharded else None),
        dtype=config.dtype,
        quantization=config.quantization,  # pyright: ignore[reportArgumentType]
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if config.chat_template is not None:
        try:
            lm.tokenizer.chat_template = config.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"cannot be read: {error}"
            raise UserError(what, str(config.chat_template), "a Jinja template in UTF-8") from error
    return lm
