"""The commands that train: on chats and completions, or on texts. Loads torch only when one of them runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, pass_on, required, setting
from maypole.core.errors import ConfigError, DataError, UserError
from maypole.train.config import TrainConfig

if TYPE_CHECKING:
    from maypole.data.rows import RowType
    from maypole.models.language_model import LanguageModel
    from maypole.train.objective import Objective
    from maypole.train.ranks import Ranks

PREVIEWED = 1000
"""Rows that ``--dry-run`` turns into tokens."""

_ALPACA = {"instruction", "output"}
_CHATS = ({"messages"}, {"conversations"}, _ALPACA | {"system"}, _ALPACA | {"history"})
_COMPLETIONS = ({"prompt", "completion"}, _ALPACA)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig, RunOptions, ModelOptions):
    """What is trained on what, and where it goes."""

    model: str = setting(input=True, help="model directory or hub id; an adapter's own directory goes on training it")
    data: tuple[str, ...] = setting(input=True, help="files, folders or hub ids with the rows")
    out: Path = setting(key=False, help="directory of the result")
    mix: tuple[float, ...] = setting((), help="one weight per source: its share of the rows; none: one after the other")
    columns: tuple[str, ...] = setting((), help="what columns are called in the data: text=body")
    eval_data: tuple[str, ...] = setting((), input=True, help="rows to measure the loss on, never to learn from")

    def __post_init__(self) -> None:
        for pair in self.columns:
            if not all(pair.partition("=")):
                raise ConfigError("columns", pair, "NAME=COLUMN, such as text=body")
        if self.eval_steps and not self.eval_data:
            raise ConfigError("eval_steps", self.eval_steps, "0 without --eval-data")
        pass_on(TrainOptions, self)

    @property
    def names(self) -> dict[str, str]:
        """Our name of a column -> the data's."""
        return {name: column for name, _, column in (pair.partition("=") for pair in self.columns)}


@dataclass(frozen=True, kw_only=True)
class SftOptions(TrainOptions):
    """How answers are learnt."""

    chat_template: Path | None = setting(None, input=True, help="Jinja file, for a tokenizer without one")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainOptions):
    """How texts are learnt."""


def sft(config: SftOptions) -> Artifact | DryRun:
    """Fine-tune a model on chats, or on prompts with completions.

    Rows have messages, or prompt and completion; alpaca and ShareGPT rows are converted. The loss falls on what the
    assistant says. The result is a checkpoint, or with --peft.type an adapter, that transformers and peft load; the
    same command continues an interrupted run.

        maypole train sft --model base --data chats.jsonl --learning-rate 2e-4 --peft.type lora --peft.r 16 --out tuned
        maypole train sft --model base --data a.jsonl b.parquet --mix 3 1 --eval-data held-out.jsonl --out tuned
    """
    return _train("sft", config)


def pretrain(config: PretrainOptions) -> Artifact | DryRun:
    """Train a model on texts: go on with a checkpoint, or begin from nothing.

    A directory that holds a config and a tokenizer but no weights gets fresh ones, drawn from --seed. Every token
    counts; texts longer than the context go on in the next row.

        maypole train pretrain --model new --data notes/ --learning-rate 1e-3 --max-steps 1000 --out begun
        maypole train pretrain --model base --data notes.jsonl --num-train-epochs 2 --out grown
    """
    return _train("pretrain", config)


def _inputs(config: TrainOptions) -> dict[str, object]:
    """What hub ids name now: branches move on, a result stays what it was."""
    from maypole.data import sources
    from maypole.models import hub

    return hub.commits(config) | sources.commits(config)


def _train(kind: str, config: TrainOptions) -> Artifact | DryRun:
    from maypole.train.ranks import join

    def begin() -> Artifact:
        return Artifact.open(
            config.out, kind=kind, config=config, inputs=_inputs(config), seed=config.seed, force=config.force
        )

    ranks = join()
    with ranks.together():
        objective = _objective(config)
        if config.dry_run:
            return _plan(kind, config, objective)
        with ranks.open(begin) as artifact:
            if artifact.finished:
                return artifact
            from maypole.data import read
            from maypole.train.fit import fit
            from maypole.train.result import save_result

            names, mix = config.names, config.mix or None
            rows = ranks.in_turn(lambda: read(config.data, objective.rows, columns=names, mix=mix, seed=config.seed))
            measured = None
            if config.eval_data:
                measured = ranks.in_turn(lambda: read(config.eval_data, objective.rows, columns=names))
            lm = _load(config, ranks)
            fit(lm, rows, objective, config, out=artifact, seed=config.seed, eval_rows=measured)
            ranks.lead(lambda: save_result(lm, artifact, artifact.manifest["metrics"]))
            return ranks.finish(artifact)


def _objective(config: TrainOptions) -> "Objective":
    from maypole.data.rows import CHAT
    from maypole.train.supervised import Chats, Completions, LanguageModeling

    required(config, "data")
    if isinstance(config, PretrainOptions):
        return LanguageModeling()
    kind = _kind_of([*config.data, *config.eval_data], config.names)
    return Chats() if kind is CHAT else Completions()


def _plan(kind: str, config: TrainOptions, objective: "Objective") -> DryRun:
    found = Artifact.find(
        config.out, kind=kind, config=config, inputs=_inputs(config), seed=config.seed, force=config.force
    )
    if found is not None and found.finished:
        return DryRun(steps=0, reuses=(str(found.path),))
    from datasets import Dataset

    from maypole.data import preview, stream
    from maypole.train.dry_run import dry_run
    from maypole.train.ranks import ALONE

    mix = config.mix or None
    first = preview(config.data, objective.rows, PREVIEWED, columns=config.names, mix=mix, seed=config.seed).rows
    if config.eval_data:
        preview(config.eval_data, objective.rows, PREVIEWED, columns=config.names)
    count = len(first)
    if count == PREVIEWED and config.max_steps < 0:
        every = stream(config.data, objective.rows, columns=config.names, mix=mix, seed=config.seed)
        count = sum(len(batch) for batch in every)
    rows = Dataset.from_list([dict(row) for row in first])
    plan = dry_run(_load(config, ALONE), rows, count, objective, config, seed=config.seed)
    return plan if found is None else replace(plan, reuses=(str(found.path),))


def _load(config: TrainOptions, ranks: "Ranks") -> "LanguageModel":
    """The model to train, with fresh weights for `pretrain` where its directory holds none."""
    from maypole.models.loading import create_from, has_weights, load

    # Weights that are about to be split may be too many for a GPU.
    device = config.device or ("cpu" if ranks.sharded else None)
    path = Path(config.model)
    bare = (path / "config.json").is_file() and not has_weights(path)
    if bare and isinstance(config, PretrainOptions):
        if config.adapter is not None:
            raise UserError("has no weights that an adapter could be for", config.model, "no --adapter")
        return create_from(path, config.seed, device=device, dtype=config.dtype)
    lm = load(
        config.model,
        adapter=config.adapter,
        device=device,
        dtype=config.dtype,
        quantization=config.quantization,  # pyright: ignore[reportArgumentType]
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if isinstance(config, SftOptions) and config.chat_template is not None:
        lm.tokenizer.chat_template = _text(config.chat_template)
    return lm


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", str(file), "a Jinja template in UTF-8") from error


def _kind_of(sources: Sequence[str], names: Mapping[str, str]) -> "RowType":
    """CHAT if any source has conversations, for those hold completions too; else COMPLETION."""
    from maypole.data.rows import CHAT, COMPLETION

    found = [_columns(source, names) for source in sources]
    for source, columns in zip(sources, found):
        if not any(wanted <= columns for wanted in (*_CHATS, *_COMPLETIONS)):
            what = f"no messages, and no prompt with a completion; found {', '.join(sorted(columns)) or 'no columns'}"
            raise DataError(what, file=source, expected=_renaming(columns))
    return CHAT if any(wanted <= columns for columns in found for wanted in _CHATS) else COMPLETION


def _columns(source: str, names: Mapping[str, str]) -> set[str]:
    """Columns of the first rows of `source`, by the names that --columns gives them."""
    from maypole.data import stream

    first = next(stream(source), None)
    if first is None:
        raise DataError("there are no rows in it", file=source, expected="at least one row")
    columns = set(first.schema.names)
    return columns | {name for name, column in names.items() if column in columns}


def _renaming(columns: set[str]) -> str:
    """The flag that would help, as far as it can be guessed."""
    from maypole.data.shapes import LIKELY_NAMES

    def likely(name: str) -> str:
        return next((column for column in LIKELY_NAMES[name] if column in columns), "NAME")

    if "text" in columns and len(columns) == 1:
        return "for texts: maypole train pretrain"
    answer = [name for name in ("prompt", "completion") if name not in columns]
    lacking = ["messages"] if likely("messages") != "NAME" else answer
    return "--columns " + " ".join(f"{name}={likely(name)}" for name in lacking)
