"""The commands that generate, score and embed. Loads torch only when one of them runs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import DataError, UserError, rows_in
from maypole.core.seeds import derive
from maypole.engine.request import Sampling

if TYPE_CHECKING:
    from maypole.engine.engine import Engine

CHUNK = 64
"""Prompts per call, always the same ones together, so that a continued run repeats what was cut off exactly."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions, RunOptions):
    """What is continued, and how."""

    model: str = setting(input=True, help="model directory or hub id")
    prompt: tuple[str, ...] = setting((), help="one or several prompts")
    data: tuple[str, ...] = setting((), input=True, help="rows with prompt, question or messages")
    max_tokens: int = setting(256, help="most tokens of a completion")
    temperature: float = setting(1.0, help="0 is greedy")
    top_p: float = setting(1.0, help="keep the most likely tokens that hold this much probability")
    top_k: int = setting(0, help="keep this many tokens; 0 keeps all")
    n: int = setting(1, help="completions per prompt")
    stop: tuple[str, ...] = setting((), help="strings that end a completion")
    chat: bool = setting(False, help="send a prompt as a user's message through the chat template")

    def __post_init__(self) -> None:
        self.sampling(0)
        pass_on(GenerateOptions, self)

    def sampling(self, index: int) -> Sampling:
        """Of the prompt at `index`."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            n=self.n,
            stop=self.stop,
            seed=derive(self.seed, "sampling", index),
        )


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelOptions, RunOptions):
    """What is scored."""

    model: str = setting(input=True, help="model directory or hub id")
    prompt: str | None = setting(None, help="what stands before; none: the beginning of a text")
    completion: tuple[str, ...] = setting((), help="one or several continuations of --prompt")
    data: tuple[str, ...] = setting((), input=True, help="rows with prompt and completion")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(ModelOptions, RunOptions):
    """What becomes vectors."""

    model: str = setting(input=True, help="model directory or hub id")
    data: tuple[str, ...] = setting(input=True, help="rows with text, or files and folders of text")
    out: Path = setting(key=False, help="directory of the result")
    task: str = setting("encode", help="encode, or causal for a language model's own states")
    pooling: str = setting("mean", help="last, mean or cls")
    normalize: bool = setting(True, help="vectors of length 1")

    def __post_init__(self) -> None:
        check("task", self.task, ("encode", "causal"))
        check("pooling", self.pooling, ("last", "mean", "cls"))
        pass_on(EmbedOptions, self)


@dataclass(frozen=True)
class Completion:
    """One completion, with the log-prob of its tokens together."""

    prompt: Any
    completion: str
    logprob: float
    tokens: int
    finish_reason: str
    index: int = 0


@dataclass(frozen=True)
class Continuation:
    """The score of one continuation."""

    prompt: Any
    completion: str
    logprob: float
    tokens: int
    is_greedy: bool


@dataclass(frozen=True)
class Results:
    """What a command found, row by row."""

    rows: tuple[Any, ...]


def generate(config: GenerateOptions) -> Results | Artifact | DryRun:
    """Continue prompts with a model.

    Prompts come from --prompt or from rows with prompt, question or messages. With --out the completions are kept as
    JSON lines, and the same command continues an interrupted run.

        maypole engine generate --model base --prompt "Once upon a time" --max-tokens 40
        maypole engine generate --model base --data prompts.jsonl --temperature 0 --out completions
    """
    from maypole.engine.request import Request

    with rows_in(*config.data):
        prompts = [*config.prompt, *(_prompt(row, i) for i, row in enumerate(_rows(config.data)))]
    if not prompts:
        raise UserError("nothing to continue", "--prompt", "--prompt TEXT, or --data FILE")
    if config.dry_run:
        return _plan(config, len(prompts), "rows.jsonl")
    if config.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]

    def run(engine: "Engine", first: int, chunk: Sequence[Any]) -> list[Completion]:
        requests: list[Request] = [Request(p, config.sampling(first + i)) for i, p in enumerate(chunk)]
        return [
            Completion(_shown(o.request.prompt), o.text, sum(o.logprobs), len(o.token_ids), o.finish_reason, o.index)
            for o in engine.generate(requests)
        ]

    return _in_chunks("generate", config, prompts, run)


def score(config: ScoreOptions) -> Results | Artifact | DryRun:
    """Score continuations: how likely a model finds them.

    Gives the log-prob of each continuation in nats, its tokens, and whether greedy decoding would have said it.

        maypole engine score --model base --prompt "The capital is" --completion " Oslo" " Rome"
        maypole engine score --model base --data completions.jsonl --out scores
    """
    from maypole.engine.request import ScoreRequest

    pairs: list[tuple[Any, str]] = [(config.prompt, completion) for completion in config.completion]
    with rows_in(*config.data):
        for i, row in enumerate(_rows(config.data)):
            if not isinstance(row.get("completion"), str):
                raise DataError("no text to score", row=i + 1, field="completion", expected="a string")
            pairs.append((_prompt(row, i), row["completion"]))
    if not pairs:
        raise UserError("nothing to score", "--completion", "--completion TEXT, or --data FILE")
    if config.dry_run:
        return _plan(config, len(pairs), "rows.jsonl")

    def run(engine: "Engine", first: int, chunk: Sequence[tuple[Any, str]]) -> list[Continuation]:
        found = engine.score([ScoreRequest(prompt, [completion]) for prompt, completion in chunk])
        return [
            Continuation(_shown(prompt), completion, scored.sum, len(scored.logprobs), scored.is_greedy)
            for (prompt, completion), (scored,) in zip(chunk, found)
        ]

    return _in_chunks("score", config, pairs, run)


def embed(config: EmbedOptions) -> Artifact | DryRun:
    """Turn texts into vectors.

    Writes embeddings.npy, (rows, d) in float32, in the order of the rows.

        maypole engine embed --model encoder --data notes.jsonl --out vectors
        maypole engine embed --model base --task causal --pooling last --data notes.jsonl --out vectors
    """
    required(config, "data")
    texts = [str(row.get("text") or "") for row in _rows(config.data)]
    empty = next((i for i, text in enumerate(texts) if not text), None)
    if empty is not None or not texts:
        with rows_in(*config.data):
            raise DataError("no text", row=(empty or 0) + 1, field="text", expected="a string that is not empty")
    if config.dry_run:
        return _plan(config, len(texts), "embeddings.npy")
    import numpy as np

    from maypole.engine.opening import open_engine

    with _opened("embed", config) as artifact:
        if artifact.finished:
            return artifact
        engine = open_engine(config, task=config.task)
        pooling: Any = config.pooling
        vectors = engine.embed(texts, pooling=pooling, normalize=config.normalize, truncate=True)
        np.save(artifact.path / "embeddings.npy", vectors, allow_pickle=False)
        return artifact.finish({"rows": len(texts), "dimensions": int(vectors.shape[1])})


def _plan(config: GenerateOptions | ScoreOptions | EmbedOptions, rows: int, file: str) -> DryRun:
    """What a run would do with `rows`, of a model that would load; with ``--out`` it writes `file`."""
    from maypole.models.loadable import check_loadable

    check_loadable(config.model, adapter=config.adapter, revision=config.revision)
    return DryRun(rows_kept=rows, files=(file,) if config.out else ())


def _in_chunks(
    kind: str,
    config: GenerateOptions | ScoreOptions,
    items: Sequence[Any],
    run: Callable[["Engine", int, Sequence[Any]], Sequence[Any]],
) -> Results | Artifact:
    """Rows of every chunk, shown; or kept, a chunk being final when it is whole."""
    from maypole.core.progress import track
    from maypole.engine.opening import open_engine

    starts = range(0, len(items), CHUNK)
    if config.out is None:
        engine = open_engine(config)
        found: list[Any] = []
        with track(kind, len(items), "prompts") as step:
            for a in starts:
                found += run(engine, a, items[a : a + CHUNK])
                step(len(items[a : a + CHUNK]))
        return Results(tuple(found))
    with _opened(kind, config) as artifact:
        if artifact.finished:
            return artifact
        parts = [artifact.checkpoints / f"{a:09}.jsonl" for a in starts]
        engine = None
        with track(kind, len(items), "prompts") as step:
            for a, part in zip(starts, parts):
                chunk = items[a : a + CHUNK]
                if not part.is_file():
                    engine = engine or open_engine(config)
                    lines = [json.dumps(vars(row), ensure_ascii=False) + "\n" for row in run(engine, a, chunk)]
                    write_atomic(part, "".join(lines))
                step(len(chunk))
        texts = [part.read_text() for part in parts]
        write_atomic(artifact.path / "rows.jsonl", "".join(texts))
        return artifact.finish({"rows": sum(text.count("\n") for text in texts)})


def _opened(kind: str, config: Any) -> Artifact:
    from maypole.data import sources
    from maypole.models import hub

    inputs = hub.commits(config) | sources.commits(config)
    return Artifact.open(config.out, kind=kind, config=config, inputs=inputs, seed=config.seed, force=config.force)


def _rows(sources: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    from maypole.data import stream

    for batch in stream(list(sources)) if sources else ():
        yield from batch.to_pylist()


def _prompt(row: Mapping[str, Any], index: int) -> Any:
    """Text or messages; of a finished conversation what stands before its last answer."""
    for name in ("prompt", "question", "messages"):
        found = row.get(name)
        if found:
            last = found[-1] if name == "messages" else None
            return found[:-1] if last is not None and last.get("role") == "assistant" else found
    raise DataError(f"found only {', '.join(row)}", row=index + 1, expected="prompt, question or messages")


def _shown(prompt: Any) -> Any:
    return prompt if prompt is None or isinstance(prompt, str) else list(prompt)
