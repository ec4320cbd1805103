"""The command that trains a model on its own judged answers. Loads torch only when it runs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maypole.align.config import OnlineConfig
from maypole.align.opening import open_model
from maypole.align.preference_options import WITHOUT_REFERENCE, PreferenceOptions
from maypole.align.rlhf_workflow_options import WorkflowOptions
from maypole.align.selm_options import SelmOptions
from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import ConfigError
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

    from maypole.align.judging import Judge
    from maypole.align.method import Method

METHODS = ("dpo", "selm", "sppo")
PREVIEWED = 1000
"""Prompts that ``--dry-run`` looks at."""

_PAIRS = tuple(f.name for f in fields(PreferenceOptions))
_WORKFLOW = ("pair", "length_penalty", "length_unit")
_SELM = ("alpha", "optimism_sample", "answers", "floor")
_SPPO = ("eta", "variant", "select")
_OWN = {"dpo": (*_PAIRS, *_WORKFLOW, "history", "first_history"), "selm": (*_PAIRS, *_SELM), "sppo": _SPPO}
"""Method -> the settings that only some methods have and it has too."""
_DRAWN = {"dpo": 8, "selm": 1, "sppo": 5}
"""Method -> answers drawn to a prompt unless --n says how many."""


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(PreferenceOptions, OnlineConfig, RunOptions, ModelOptions):
    """Whose answers are judged by whom, and what is learnt from that."""

    model: str = setting(input=True, help="model directory or hub id")
    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with prompts")
    judge: tuple[str, ...] = setting(input=True, help="file.py:function or a judge's directory, once or several times")
    out: Path = setting(key=False, help="directory of the result")
    method: str = setting("dpo", help="dpo: best answer against worst; selm: the same, exploring; sppo: win rates")
    judge_weights: tuple[float, ...] = setting((), help="one weight per judge")
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: prompt=question")
    eval_data: tuple[str, ...] = setting((), input=True, help="prompts to measure on after every round")
    first_history: tuple[str, ...] = setting(
        (), input=True, help="dpo: given pairs, which --history has for rows of a round before the first"
    )
    n: int | None = setting(None, help="answers to a prompt; default 8, of sppo 5, of selm 1 beside the data's")
    max_tokens: int = setting(256, help="longest answer")
    temperature: tuple[float, ...] = setting(
        (1.0,), help="of the draws; 1 is the policy itself; dpo: with several, n is shared out among them"
    )
    top_p: float = setting(1.0, help="keep the most likely tokens that hold this much probability")
    pair: str | None = setting(
        None, help="dpo: max_min (default), best and worst; max_max: and second best; max_random, random"
    )
    length_penalty: float | None = setting(None, help="dpo: what a token of an answer takes from its score; default 0")
    length_unit: Literal["token", "char"] | None = setting(None, help="dpo: what length_penalty counts; default token")
    alpha: float | None = setting(None, help="selm: how much the unknown attracts, as a share of beta; default 1e-3")
    optimism_sample: Literal["greedy", "sample"] | None = setting(
        None, help="selm: leave the greedy answer (default), or one that was drawn"
    )
    answers: tuple[str, ...] | None = setting(
        None, help="selm: columns with answers to judge too; default chosen and rejected, with --n none"
    )
    floor: float | None = setting(None, help="selm: stop pushing an answer so many nats less likely, such as -20")
    eta: float | None = setting(None, help="sppo: nats from always losing to always winning; default 1000")
    variant: str | None = setting(None, help="sppo: soft (default), single or hard targets")
    select: str | None = setting(None, help="sppo: max_min (default), or all answers")
    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")
    train: TrainConfig = setting(factory=TrainConfig)

    def __post_init__(self) -> None:
        check("method", self.method, METHODS)
        every = {name for own in _OWN.values() for name in own}
        for name in sorted(every - {*_OWN[self.method]}):
            default = next(f.default for f in fields(self) if f.name == name)
            if getattr(self, name) != default:
                raise ConfigError(name, getattr(self, name), f"nothing with --method {self.method}")
        if self.method != "sppo" and self.loss == "kto":
            raise ConfigError("loss", self.loss, "a loss on pairs")
        if self.method == "selm" and self.loss in WITHOUT_REFERENCE:
            raise ConfigError("loss", self.loss, "a loss that holds to a reference")
        if self.first_history and self.history == "none":
            raise ConfigError("first_history", self.first_history, "nothing with --history none")
        if self.max_kl is not None and not self.eval_data:
            raise ConfigError("max_kl", self.max_kl, "nothing without --eval-data, on which it is measured")
        check("variant", self.variant, (None, "soft", "single", "hard"))
        check("select", self.select, (None, "max_min", "all"))
        if self.judge_weights and len(self.judge_weights) != len(self.judge):
            raise ConfigError("judge_weights", self.judge_weights, f"one per judge, here {len(self.judge)}")
        least = 2 - bool(self.method == "selm" and self.answers)
        if self.n is not None and self.n < least:
            raise ConfigError("n", self.n, f"{least} or more: one answer has nothing to be compared with")
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as prompt=question")
        rates = self.train.round_learning_rates
        if rates and len(rates) != self.rounds:
            raise ConfigError("train.round_learning_rates", rates, f"one for each round, here {self.rounds}")
        most = (self.n or _DRAWN["dpo"]) if self.method == "dpo" else 1
        if not 1 <= len(self.temperature) <= most:
            raise ConfigError("temperature", self.temperature, f"1 to {most} with --method {self.method} and this --n")
        _ = self.workflow  # whose settings are checked where they stand
        if self.reference is None:
            held_to: Literal["initial", "previous"] = "initial" if self.method == "dpo" else "previous"
            object.__setattr__(self, "reference", held_to)
        if self.method == "selm":
            _ = self.selm  # whose settings are checked where they stand
        pass_on(OnlineOptions, self)

    @property
    def workflow(self) -> WorkflowOptions:
        """Which answers of a prompt iterative DPO learns from."""
        given: dict[str, Any] = {name: getattr(self, name) for name in _WORKFLOW if getattr(self, name) is not None}
        return WorkflowOptions(temperatures=self.temperature, **given)

    @property
    def selm(self) -> SelmOptions:
        """The optimism of selm, and its candidates."""
        given: dict[str, Any] = {name: getattr(self, name) for name in _SELM if getattr(self, name) is not None}
        if self.n is not None:
            given = {"answers": (), **given, "samples": self.n - 1}
        return SelmOptions(**given)

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}


def online(config: OnlineOptions) -> Artifact | DryRun:
    """Train a model on its own answers, round by round, as a judge likes them.

    Rows have a prompt, text or messages; the judge is called with their other columns. Every round the model as it is
    answers new prompts, and learns from the best and the worst answers. Samples, scores and training rows are kept in
    rounds/, what was measured in rounds.json; the same command continues an interrupted run.

        maypole align online --model base --data prompts.jsonl --judge judge.py:score --rounds 5 --out better
        maypole align online --method selm --model base --data pairs.jsonl --judge judge.py:score --out better
        maypole align online --method sppo --model base --data prompts.jsonl --judge judge.py:prefers --out better
    """
    from maypole.train.ranks import join

    required(config, "data", "judge")

    def begin() -> Artifact:
        return Artifact.open(
            config.out, kind="online", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
        )

    ranks = join()
    with ranks.together():
        if config.dry_run:
            return _plan(config)
        method, judge = _method(config), _judge(config)
        with ranks.open(begin) as artifact:
            if artifact.finished:
                return artifact
            from maypole.align.online import online as loop
            from maypole.train.result import save_result

            prompts = ranks.in_turn(lambda: _prompts(config, config.data))
            measured = ranks.in_turn(lambda: _prompts(config, config.eval_data)) if config.eval_data else None
            given = ranks.in_turn(lambda: _given(config, method)) if config.first_history else None
            lm = open_model(config, config.chat_template)
            loop(
                lm, prompts, judge, method, config, config.train, out=artifact, seed=config.seed,
                eval_prompts=measured, first_history=given, callbacks=_watching(config),
            )  # fmt: skip
            ranks.lead(lambda: save_result(lm, artifact, artifact.manifest["metrics"]))
            return ranks.finish(artifact)


def _inputs(config: OnlineOptions) -> dict[str, object]:
    """What hub ids name now: branches move on, a result stays what it was."""
    from maypole.data import sources
    from maypole.models import hub

    return hub.commits(config) | sources.commits(config)


def _method(config: OnlineOptions) -> "Method":
    from maypole.engine.request import Sampling

    n, heat = config.n or _DRAWN[config.method], config.temperature[0]
    sampling = Sampling(n=n, max_tokens=config.max_tokens, temperature=heat, top_p=config.top_p)
    if config.method == "sppo":
        from maypole.align.sppo import Sppo

        given = {name: getattr(config, name) for name in _SPPO if getattr(config, name) is not None}
        return Sppo(sampling=sampling, **given)
    preference = PreferenceOptions(**{name: getattr(config, name) for name in _PAIRS})
    if config.method == "selm":
        from maypole.align.selm import BETA, Selm

        preference = preference if config.beta is not None else replace(preference, beta=BETA)
        return Selm(config.selm, preference, replace(sampling, n=1))
    from maypole.align.rlhf_workflow import IterativeDPO

    return IterativeDPO(preference, sampling, config.workflow)


def _watching(config: OnlineOptions) -> "tuple[TrainerCallback, ...]":
    if config.method != "selm":
        return ()
    from maypole.align.selm import DeltaWatch

    return (DeltaWatch(),)


def _judge(config: OnlineOptions) -> "Judge":
    from maypole.evaluate import judges

    return judges.load_all(config.judge, config.judge_weights or None)


def _prompts(config: OnlineOptions, sources: tuple[str, ...]) -> "Dataset":
    from maypole.data import PROMPT, read

    return read(sources, PROMPT, columns=config.names)


def _given(config: OnlineOptions, method: "Method") -> "Dataset":
    from maypole.data import read

    return read(config.first_history, method.objective.rows, columns=config.names)


def _plan(config: OnlineOptions) -> DryRun:
    """What training would take with answers of the full length; what sampling and judging take is not known before."""
    found = Artifact.find(
        config.out, kind="online", config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    )
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from maypole.align.history import given_rows, joined
    from maypole.align.online import drawn_prompts, imagined
    from maypole.train.dry_run import dry_run

    method = _method(config)
    _judge(config)
    prompts = _prompts(config, config.data)
    for source in config.eval_data:
        _prompts(config, (source,))
    lm = open_model(config, config.chat_template)
    drawn = drawn_prompts(len(prompts), config, config.seed)
    rows = method.rows(imagined(lm, prompts.select(drawn[0][:PREVIEWED].tolist()), method, seed=config.seed))
    count = len(drawn[0])
    if config.first_history and config.history != "none":
        given = _given(config, method)
        count += len(given) if config.history == "all" else min(len(given), count)
        form = prompts.features.arrow_schema.field("prompt").type
        some = given_rows(given.select(range(min(len(given), PREVIEWED))), method.objective.rows, form)
        rows = joined(rows, [some], config.history, 0, seed=config.seed)
    plan = dry_run(lm, rows, count, method.objective, config.train, seed=config.seed)
    if config.train.max_steps < 0:
        plan = replace(plan, steps=(plan.steps or 0) * config.rounds, minutes=(plan.minutes or 0.0) * config.rounds)
    files = ("rounds.json", "rounds/000/samples.parquet", "rounds/000/rows.parquet")
    reuses = () if found is None else (str(found.path),)
    return replace(plan, rows_kept=len(prompts), files=(*plan.files, *files), reuses=reuses)
