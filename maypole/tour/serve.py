"""Stage 8: the tuned model answers over HTTP, and one program of many calls goes over the corpus there.

The program has the shape of a long text's summary: every part by itself, all at once, then the whole from what was said
of the parts. The same calls are also asked one by one as plain completions that share nothing. Knows nothing about
reports.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.progress import track
from maypole.engine.engine import Engine
from maypole.serve.app import create_app
from maypole.serve.parrot import Output, Session, function
from maypole.serve.running import in_thread
from maypole.tour.adapt import length_of
from maypole.tour.base import Base
from maypole.tour.corpus import Corpus
from maypole.tour.plan import ServePlan

FILE = "program.json"
BASE, TUNED = "base", "tuned"
"""Names of the models that are served."""
SENTENCE, SUMMARY = 16, 24
"""Tokens that a part, and the whole, are told in."""
SPARE, LEAST_ROOM = 16, 24
"""Tokens left free, as tokens may join at borders; and those of a part at least, however short the model's window."""
WHOLE = "Here is what the parts of a text tell, a line each.\n{{sentences}}\nAll in all, the text tells that{{summary}}"
PART = (
    "A part of a text is told in a few words.\n\n"
    "Part: The miller keeps two wheels. One turns in spring, when the river is high, the other in a dry year.\n"
    "In a few words: the miller has a wheel for every water.\n\n"
    "Part: {{part}}\nIn a few words:{{sentence}}"
)


@dataclass(frozen=True, slots=True)
class Way:
    """The program run once: what every call said, in order; prompt tokens computed and reused; seconds to the mean
    first token of the parts' calls, and of all."""

    said: list[str]
    computed: int
    reused: int
    first: float
    seconds: float


@function(template=PART, models=(TUNED, BASE))
def told(part: str, sentence: Annotated[str, Output(max_tokens=SENTENCE, temperature=0)]):
    """A part, by itself."""


@function(template=WHOLE, models=(TUNED, BASE))
def summed_up(sentences: str, summary: Annotated[str, Output(max_tokens=SUMMARY, temperature=0)]):
    """The whole, from what was said of the parts."""


def serve(base: Base, corpus: Corpus, plan: ServePlan, tuned: Artifact, artifact: Artifact) -> None:
    """Make `artifact`: ``program.json`` with the texts, what was said of them, each run's tokens and seconds, and the
    program's graph."""
    engine = opened(base, tuned.path)
    model = TUNED if engine.adapters else BASE
    parts = texts(engine, corpus, plan.parts)
    shared: list[Way] = []
    apart: list[Way] = []
    graph: dict[str, Any] = {}
    try:
        with in_thread(create_app(engine, name=BASE)) as url, track("serve", 2 * plan.repeats, "runs") as step:
            as_program(url, parts[:1])  # what is done for the first time is measured with neither
            for turn in range(plan.repeats):
                way, graph = as_program(url, parts)
                shared.append(way)
                apart.append(one_by_one(url, model, parts, f"run {turn}"))
                step(2)
    finally:
        engine.close()
    found = {"model": model, "parts": parts, "shared": list(map(asdict, shared)), "apart": list(map(asdict, apart))}
    write_atomic(artifact.path / FILE, json.dumps({**found, "graph": graph}))
    artifact.finish({"calls": len(parts) + 1, "computed_tokens": shared[-1].computed,
                     "reused_tokens": shared[-1].reused, "computed_apart": apart[-1].computed})  # fmt: skip


def opened(base: Base, tuned: Path) -> Engine:
    """The tuned model: whole as `BASE`, or the base with its adapter as `TUNED` beside it."""
    if not (tuned / "adapter_config.json").is_file():
        return Engine.load(tuned)
    return Engine.load(base.place, adapters={TUNED: tuned})


def texts(engine: Engine, corpus: Corpus, count: int) -> list[str]:
    """Beginnings of `count` held-out documents, of fewer where what is said of them would not fit the model."""
    most = length_of(engine.lm) - len(engine.encode(WHOLE)) - SUMMARY - SPARE
    count = max(1, min(count, most // (SENTENCE + 2)))
    room = length_of(engine.lm) - len(engine.encode(PART)) - SENTENCE - SPARE
    found: list[str] = []
    for text in corpus.held_out["text"]:
        words = " ".join(text.split())
        ids = engine.encode(words)[:max(room, LEAST_ROOM)]
        part = engine.tokenizer.decode(ids, skip_special_tokens=True)[: len(words)]
        if part.strip():
            found.append(part.strip())
        if len(found) == count:
            break
    return found


def as_program(url: str, parts: Sequence[str]) -> tuple[Way, dict[str, Any]]:
    """The program in a session of the server, and its graph."""
    with Session(url=url, seed=0) as session:
        begun = time.perf_counter()
        sentences = [told(part) for part in parts]
        whole = summed_up(sentences)
        said = session.gather([*sentences, whole], "latency")
        seconds = time.perf_counter() - begun
        graph = session.explain()
    firsts = [node["seconds"]["first_token"] - node["seconds"]["submitted"]
              for node in graph["nodes"] if node["function"] == "told"]  # fmt: skip
    totals = graph["totals"]
    first = sum(firsts) / len(firsts)
    return Way(said, totals["computed_tokens"], totals["reused_tokens"], first, seconds), graph


def one_by_one(url: str, model: str, parts: Sequence[str], salt: str) -> Way:
    """The same calls as completions that share nothing: the parts all at once, then the whole."""
    with httpx.Client(base_url=url, timeout=None) as client, ThreadPoolExecutor(len(parts)) as pool:

        def asked(number: int, prompt: str, tokens: int) -> tuple[str, dict[str, Any], float]:
            begun, first, text, used = time.perf_counter(), 0.0, "", {}
            body = {
                "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}, "cache_salt": f"{salt}, {number}",
            }  # fmt: skip
            with client.stream("POST", "/v1/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if not line or line == "data: [DONE]":
                        continue
                    document = json.loads(line.removeprefix("data: "))
                    first = first or time.perf_counter() - begun
                    text += "".join(choice["text"] for choice in document["choices"])
                    used = document.get("usage") or used
            return text, used, first

        begun = time.perf_counter()
        prompts = [PART.replace("{{part}}", part).replace("{{sentence}}", "") for part in parts]
        found = list(pool.map(lambda at: asked(at, prompts[at], SENTENCE), range(len(parts))))
        sentences = "\n".join(text for text, _, _ in found)
        prompt = WHOLE.replace("{{sentences}}", sentences).replace("{{summary}}", "")
        found.append(asked(len(parts), prompt, SUMMARY))
        seconds = time.perf_counter() - begun
    reused = sum(used["prompt_tokens_details"]["cached_tokens"] for _, used, _ in found)
    computed = sum(used["prompt_tokens"] for _, used, _ in found) - reused
    firsts = [first for _, _, first in found[:-1]]
    return Way([text for text, _, _ in found], computed, reused, sum(firsts) / len(firsts), seconds)
