"""The command that compares fresh data with fixed data. Loads torch only when it runs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maypole.align.online_offline_gap.cells import cells
from maypole.align.online_offline_gap.config import GapConfig, check_training
from maypole.align.opening import open_model
from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, pass_on, required, setting
from maypole.core.errors import ConfigError
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from maypole.align.online_offline_gap.running import Materials
    from maypole.models.language_model import LanguageModel

PREVIEWED = 1000
"""Pairs that ``--dry-run`` turns into tokens."""


@dataclass(frozen=True, kw_only=True)
class GapOptions(GapConfig, RunOptions, ModelOptions):
    """What is compared: a policy, prompts and pairs to train it on, and two judges."""

    model: str = setting(input=True, help="the policy to begin with: model directory or hub id")
    data: tuple[str, ...] = setting(input=True, help="prompts, of the online arms")
    pairs: tuple[str, ...] = setting(input=True, help="rows with prompt, chosen and rejected, of the offline arms")
    eval_data: tuple[str, ...] = setting(input=True, help="prompts to measure on")
    proxy: str = setting(input=True, help="judge that labels the online arms' answers: file.py:function or a directory")
    judge: str = setting(input=True, help="golden judge: it labels the pairs and says who wins")
    out: Path = setting(key=False, help="directory of the result")
    held_out: float = setting(0.1, help="without --held-out-data: share of the prompts of --pairs to tell apart")
    held_out_data: tuple[str, ...] = setting((), input=True, help="pairs to tell apart, never learnt from")
    strong: str | None = setting(None, input=True, help="of quality: a better policy, whose answers become pairs")
    sizes: tuple[str, ...] = setting((), input=True, help="of scale: further policies, each held to itself")
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: prompt=question")
    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")
    workers: int = setting(1, key=False, help="runs side by side; each worker holds a model")
    ray: str | None = setting(None, key=False, help="run them on Ray: local, or the address of a cluster")
    train: TrainConfig = setting(factory=TrainConfig)

    def __post_init__(self) -> None:
        pass_on(GapOptions, self)
        check_training(self.train)
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out", self.held_out, "above 0 and below 1")
        if self.workers < 1:
            raise ConfigError("workers", self.workers, "a whole number above 0")
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as prompt=question")
        for name, wanted in {"strong": "quality", "sizes": "scale"}.items():
            if getattr(self, name) and wanted not in self.experiments:
                raise ConfigError(name, getattr(self, name), f"nothing without --experiments {wanted}")
        if len(set(self.policies)) < len(self.sizes):
            raise ConfigError("sizes", self.sizes, "directories with names that differ")

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}

    @property
    def policies(self) -> dict[str, str]:
        """Name -> further policy: the last part of its path, in letters that a file's name may have."""
        return {re.sub(r"[^\w.]+", "-", Path(spec).name) or "policy": spec for spec in self.sizes}


def gap(config: GapOptions) -> Artifact | DryRun:
    """Find out whether fresh answers are worth their cost: online and offline training, beside each other.

    Every run is the same policy, loss, optimiser and number of steps; what differs is where its pairs come from. It is
    measured along the way: its distance from the policy it began with, its wins by a golden judge, and how it tells
    pairs apart. The result is a report, and every run in cells/; the same command continues an interrupted one.

        maypole align gap --config examples/gap.yaml
        maypole align gap --config examples/gap.yaml --experiments gap,proximity --workers 2 --out gap-2
    """
    required(config, "model", "data", "pairs", "eval_data", "proxy", "judge")
    if config.dry_run:
        return _plan(config)
    with Artifact.open(config.out, force=config.force, **_made_of(config)) as artifact:
        if artifact.finished:
            return artifact
        from maypole.align.online_offline_gap import running

        return running.gap(
            _materials(config), config, config.train, out=artifact, seed=config.seed, workers=config.workers,
            ray=config.ray,
        )  # fmt: skip


def _made_of(config: GapOptions) -> dict[str, Any]:
    """What says which result this is; of hub ids what they name now."""
    from maypole.align.online_offline_gap.running import KIND
    from maypole.data import sources
    from maypole.models import hub

    inputs = hub.commits(config) | sources.commits(config)
    return {"kind": KIND, "config": config, "inputs": inputs, "seed": config.seed}


def _materials(config: GapOptions) -> "Materials":
    from maypole.align.online_offline_gap.running import Materials
    from maypole.align.reward import hold_out
    from maypole.data import PAIR, PROMPT, read

    def rows(sources: tuple[str, ...], kind: Any) -> "Dataset":
        return read(sources, kind, columns=config.names)

    pairs = rows(config.pairs, PAIR)
    if config.held_out_data:
        held_out = rows(config.held_out_data, PAIR)
    else:
        pairs, held_out = hold_out(pairs, config.held_out, seed=config.seed)
    return Materials(
        policy=_loader(config), prompts=rows(config.data, PROMPT), pairs=pairs, proxy=config.proxy, judge=config.judge,
        eval_prompts=rows(config.eval_data, PROMPT), held_out=held_out,
        strong=_other(config, config.strong) if config.strong else None,
        sizes={name: _other(config, spec) for name, spec in config.policies.items()},
    )  # fmt: skip


def _loader(config: ModelOptions) -> "Callable[[], LanguageModel]":
    """What loads the policy, in this process or another."""
    return partial(open_model, config, getattr(config, "chat_template", None))


def _other(config: GapOptions, spec: str) -> "Callable[[], LanguageModel]":
    return _loader(replace(config, model=spec, adapter=None, revision=None))


def _plan(config: GapOptions) -> DryRun:
    """The runs by name and what training takes in all; what sampling and judging take is not known before."""
    found = Artifact.find(config.out, force=config.force, **_made_of(config))
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from datasets import Dataset

    from maypole.align.online_offline_gap import report, running
    from maypole.align.preference import objective_of
    from maypole.evaluate import judges
    from maypole.train.dry_run import dry_run

    materials = _materials(config)
    running.check_inputs(config, config.train, materials)
    for spec in (config.proxy, config.judge):
        judges.load(spec)
    todo = cells(config, tuple(materials.sizes))
    first = materials.pairs.select(range(min(PREVIEWED, len(materials.pairs))))
    columns = {name: first[name] for name in ("prompt", "chosen", "rejected")}
    objective = objective_of(config.preference(config.betas[0]))
    train = config.training(config.train, config.rates[0])
    plan = dry_run(
        open_model(config, config.chat_template), Dataset.from_dict(columns), len(materials.pairs), objective, train,
        seed=config.seed,
    )  # fmt: skip
    done = [cell for cell in todo if found is not None and (found.path / "cells" / cell.name).is_dir()]
    left = len(todo) - len(done)
    reuses = () if found is None else (str(found.path), *(f"cells/{cell.name}" for cell in done))
    return replace(
        plan, steps=config.steps * left, minutes=round((plan.minutes or 0.0) * left, 2), reuses=reuses,
        files=(report.PAGE, report.REPORT, report.TABLE, report.PICTURE, *(f"cells/{cell.name}" for cell in todo)),
    )  # fmt: skip
