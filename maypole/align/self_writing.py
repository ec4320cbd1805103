"""FLAME's first step (arXiv 2405.01525): the base model itself writes the answers to instructions that ask for facts.

So nothing is learnt from them that it does not know. Other instructions keep their answers, as in plain fine-tuning.
Knows nothing about rewards, and trains nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from maypole.align.chunks import Rows, in_chunks
from maypole.align.fact_based import Classify, classified
from maypole.core.errors import ConfigError, UserError
from maypole.core.seeds import derive
from maypole.data.chat import Talk
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.factuality import text_of

Ask = Callable[[str, Sequence[tuple[str, str]]], str]
"""(instruction, demonstrations of (instruction, answer)) -> the text that the base model continues with its answer."""
Embed = Callable[[list[str]], np.ndarray]
"""Texts -> (n, d) vectors of unit length; texts that are alike have a large product."""

GIVEN, SELF = "given", "self"
HEADER = "Instruction:"


def few_shot(instruction: str, demonstrations: Sequence[tuple[str, str]]) -> str:
    """Instructions with their answers, one under the other, as a model continues them that has read texts alone."""
    shown = "".join(f"{HEADER} {asked}\nAnswer: {said}\n\n" for asked, said in demonstrations)
    return f"{shown}{HEADER} {instruction}\nAnswer:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How the base model writes answers: `demonstrations` of the instructions most like this one, so many `samples`.

    An answer ends where one of `stop` begins: the next instruction. Empty answers and those that do not end within
    `max_tokens` are dropped, and, if they are to be `distinct`, repetitions; else what the model says more often is
    learnt more often.
    """

    demonstrations: int = 5
    samples: int = 10
    temperature: float = 0.7
    max_tokens: int = 256
    ask: Ask = few_shot
    stop: tuple[str, ...] = (f"\n{HEADER}",)
    distinct: bool = True

    def __post_init__(self) -> None:
        for field, least in (("demonstrations", 0), ("samples", 1), ("max_tokens", 1)):
            if getattr(self, field) < least:
                raise ConfigError(field, getattr(self, field), f"{least} or more")

    def sampling(self, seed: int) -> Sampling:
        drawn = Sampling(n=self.samples, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        return replace(drawn, stop=self.stop)


@dataclass(frozen=True, slots=True)
class Built:
    """Training rows, and how many of which kind there are or were left out for which reason."""

    rows: Dataset
    counts: Mapping[str, int]


def build_sft(
    base: Engine,
    rows: Dataset,
    classify: Classify,
    writing: Writing = Writing(),
    *,
    seed: int = 0,
    embed: Embed | None = None,
    keep: Path | None = None,
) -> Built:
    """COMPLETION rows to train on: `rows` as they are, but for those that ask for facts, whose answers `base` writes.

    Each of those becomes at most `Writing.samples` rows, or none: the given answer never takes the place of one that
    was dropped. Columns: prompt, completion, fact_based, source ("given" or "self").

    Parameters
    ----------
    base
        The model before any fine-tuning; a fine-tuned one has its habits already.
    rows
        Instructions with answers; they are the demonstrations, too.
    embed
        Who says which instructions are alike; default the base model's own mean states.
    keep
        A folder for what is drawn: what lies there already is not drawn again.
    """
    prompts = [text_of(prompt) for prompt in rows["prompt"]]
    factual = classified(classify, prompts)
    asked = [i for i, fact in enumerate(factual) if fact]
    known = [(prompt, text_of(answer).strip()) for prompt, answer in zip(prompts, rows["completion"])]
    texts = dict(zip(asked, demonstrated(base, [prompts[i] for i in asked], known, writing, embed)))

    def write(numbers: list[int]) -> Rows:
        base.close()  # what it has read already must not decide who is computed with whom
        fits = [i for i in numbers if len(base.encode(texts[i])) < base.max_length]
        outputs = iter(base.generate([Request(texts[i], writing.sampling(derive(seed, "flame", i))) for i in fits]))
        made: Rows = [{"row": i, "reason": "no room"} for i in numbers if i not in fits]
        for i in fits:
            said: set[str] = set()
            for output in (next(outputs) for _ in range(writing.samples)):
                text = output.text.strip()
                reason = "empty" if not text else "repeated" if writing.distinct and text in said else None
                reason = "too long" if output.finish_reason == "length" else reason
                made.append({"row": i, "text": text, "reason": reason})
                said.add(text)
        return made

    written = in_chunks(asked, write, keep, "self-written answers")
    own: dict[int, list[str]] = {i: [] for i in asked}
    for answer in written:
        if answer["reason"] is None:
            own[answer["row"]].append(answer["text"])
    counts = {"instructions": len(rows), "fact_based": len(asked), "self_written": sum(map(len, own.values()))}
    counts |= {"left_out": sum(not answers for answers in own.values())}
    counts |= Counter(f"dropped, {answer['reason']}" for answer in written if answer["reason"])
    fields = [rows.features.arrow_schema.field(name) for name in ("prompt", "completion")]
    schema = pa.schema([*fields, ("fact_based", pa.bool_()), ("source", pa.string())])
    made = list(_completions(rows, factual, own))
    if not made:
        raise UserError("no answer of the base model could be kept, and no other instruction is there", "data")
    return Built(Dataset(InMemoryTable(pa.Table.from_pylist(made, schema))), counts)


def demonstrated(
    base: Engine,
    prompts: Sequence[str],
    known: Sequence[tuple[str, str]],
    writing: Writing,
    embed: Embed | None = None,
) -> list[str]:
    """What the base model continues for each of `prompts`, with demonstrations out of `known`."""
    if not writing.demonstrations or not prompts:
        return [writing.ask(prompt, []) for prompt in prompts]
    embed = embed or (lambda texts: base.embed(texts, pooling="mean", truncate=True))
    instructions = [instruction for instruction, _ in known]
    vectors = embed([*instructions, *prompts])
    of_known, asked = vectors[: len(known)], vectors[len(known) :]
    shown: list[str] = []
    for prompt, vector in zip(prompts, asked):
        others = np.array([instruction != prompt for instruction in instructions], dtype=bool)
        chosen = nearest(of_known @ vector, others, writing.demonstrations)
        shown.append(writing.ask(prompt, [known[i] for i in chosen]))
    return shown


def nearest(likeness: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
    """The k places that are most alike among those allowed, the nearest last. Both arguments: (n,)"""
    places = np.flatnonzero(allowed)
    if len(places) < k:
        raise UserError(f"{len(places)} other instructions are too few for {k} demonstrations", "demonstrations")
    best = places[np.argsort(-likeness[places], kind="stable")[:k]]
    return best[::-1].tolist()


def _completions(rows: Dataset, factual: Sequence[bool], own: Mapping[int, Sequence[str]]) -> Iterator[dict[str, Any]]:
    for i, (prompt, given) in enumerate(zip(rows["prompt"], rows["completion"])):
        if not factual[i]:
            yield {"prompt": prompt, "completion": given, "fact_based": False, "source": GIVEN}
        for text in own.get(i, ()):
            yield {"prompt": prompt, "completion": _like(given, text), "fact_based": True, "source": SELF}


def _like(given: Talk, text: str) -> Any:
    """`text` in the form that the given answer has, with the space that it begins with."""
    if isinstance(given, str):
        return given[: len(given) - len(given.lstrip())] + text
    return [{"role": "assistant", "content": text}]
