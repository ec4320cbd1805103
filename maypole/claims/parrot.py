"""Parrot (arXiv 2405.19888): what it gains that an engine sees whole programs rather than single requests.

Parts `shared` and `agents` run programs on a small Llama and count CPU seconds and tokens in the cache; `chain` runs
one against a client at a distance; `map-reduce` and `mixed` run the real service and scheduler on engines whose steps
cost what a formula says, on a clock that jumps (`virtual_engines`).
"""

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

import maypole
import maypole.engine.step_plan as step_plan
from maypole.claims.effects import Effect, Part
from maypole.claims.parrot_mixes import FULL, RTT, SPREAD, run_map_reduce, run_mixed
from maypole.claims.parrot_programs import Program, agents, chain, one_by_one, shared_prompts, whole, words
from maypole.core.seeds import derive
from maypole.engine import Engine, EngineConfig, Request
from maypole.engine.partial_attention import Partial
from maypole.models.loading import create
from maypole.models.plan import AttentionSpec
from maypole.serve.parrot.calls import Call
from maypole.serve.parrot.hosts import LocalHost
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.service import Service

STATEMENT = (
    "Programs of several calls gain when the server sees them whole. 32 calls with a common prompt of 1,000 tokens "
    "cost at least 3 times less where its keys and values are computed once, and at least 1.6 times less again where "
    "all attend to them together than where each attends to a copy of its own; with a short prompt, or two calls, "
    "there is next to nothing to gain. A chain saves the client's round trips. On a virtual clock with the step times "
    "of a large GPU the service's map-reduce gains as much as the paper's, and beside map-reduces as fast as on "
    "engines kept full its chats are as fast as on engines kept free. Agents that read the same files hold less than "
    "half of the keys and values. Nothing else is said in any of them than call by call."
)


MANY = 32
"""Requests of the largest program."""
TOKENIZER = Path(maypole.__file__).parent / "village" / "base" / "village-1M"


def engine_of(seed: int, max_seqs: int = 64) -> Engine:
    """A Llama of 11 million fresh weights, large enough that no two tokens are nearly as likely."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=320, intermediate_size=864, num_hidden_layers=8,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    lm = create(config, tokenizer, derive(seed, "weights"))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return Engine(lm, EngineConfig(max_seqs=max_seqs))


class Apart(LocalHost):
    """A host that shares nothing: every prompt is salted by itself."""

    def __init__(self, engine: Engine) -> None:
        super().__init__("apart", engine, capacity=Capacity(FULL, FULL))
        self.shares, self._salts = False, count()

    def run(self, prompt: Any, sampling: Any, model: str | None, salt: str | None, *more: Any) -> Any:
        return super().run(prompt, sampling, model, f"apart {next(self._salts)}", *more)


@contextmanager
def each_its_copy() -> Iterator[None]:
    """Keys and values are computed once, and every request attends to a copy of its own, as it would to its own row."""
    copies: dict[tuple[int, int], tuple[Any, torch.Tensor, torch.Tensor]] = {}
    together = step_plan._Shared.attend

    def attend(shared: Any, query: torch.Tensor, spec: AttentionSpec) -> Partial:
        node, q = shared.node, query[shared.tokens]
        n = len(q)
        if n > MANY:  # stretches of prompts, whose tokens are many to each copy
            return together(shared, query, spec)
        keys, values = node.layers[spec.layer]
        found = copies.get((id(node), spec.layer))
        if found is None or len(found[1]) < n or found[1].shape[2] != keys.shape[1]:
            found = node, *(x.expand(n, *x.shape).contiguous() for x in (keys, values))
            copies[id(node), spec.layer] = found
        _, k, v = found
        out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, None], k[:n], v[:n], scale=spec.scaling
        )
        return out.reshape(n, q.shape[1], -1), logsum.reshape(n, q.shape[1])

    step_plan._Shared.attend = attend  # type: ignore[method-assign]
    try:
        yield
    finally:
        step_plan._Shared.attend = together  # type: ignore[method-assign]


class Ran:
    """What a program cost on an engine: CPU seconds, most tokens of keys and values at once, and what it said."""

    def __init__(self, engine: Engine, program: Program, *, shares: bool = True) -> None:
        host = LocalHost("engine", engine, capacity=Capacity(FULL, FULL)) if shares else Apart(engine)
        self.held = 0
        engine.on_step(lambda seconds: self._look(engine))
        begin = time.process_time()
        self.texts = asyncio.run(whole(Service([host]), program))
        self.seconds = time.process_time() - begin
        engine.close()

    def _look(self, engine: Engine) -> None:
        scheduler = engine._scheduler
        if scheduler is None:
            return
        running = [s for s in list(scheduler.running) if s.slots is not None]
        nodes = {node for s in running if s.node is not None for node in s.node.chain()}
        own = sum(s.held - s.base for s in running)
        self.held = max(self.held, own + sum(len(node.tokens) for node in nodes))


def best(engine: Engine, program: Program, rounds: int = 2) -> dict[str, Ran]:
    """Each way to run it, interleaved, the quickest of its rounds."""
    found: dict[str, list[Ran]] = {"together": [], "copies": [], "apart": []}
    for _ in range(rounds):
        found["together"].append(Ran(engine, program))
        with each_its_copy():
            found["copies"].append(Ran(engine, program))
        found["apart"].append(Ran(engine, program, shares=False))
    return {name: min(ran, key=lambda one: one.seconds) for name, ran in found.items()}


def same(arms: dict[str, Ran]) -> float:
    """The share of outputs that are the same in every way to run them."""
    return statistics.mean(len(set(texts)) == 1 for texts in zip(*(arm.texts for arm in arms.values())))


def run_shared(seed: int, workdir: Path) -> list[Effect]:
    """C1: a common prompt of 1,000 tokens, and where there is nothing to share."""
    engine = engine_of(seed)

    def program(prefix: int, own: int, requests: int) -> Program:
        system = _text(engine, prefix, seed, "system")
        questions = [_text(engine, own, seed, "question", n) for n in range(requests)]
        return shared_prompts([system], questions, 32)

    best(engine, program(64, 16, 4), 1)  # so that none pays for what is made at first use
    arms = best(engine, program(1000, 16, 32))
    short, pair = (best(engine, program(*sizes), 5) for sizes in ((16, 128, 32), (16, 128, 2)))  # differences are small

    def ratio(name: str, of: dict[str, Ran], ours: str, other: str, least: float, **options: Any) -> Effect:
        return Effect(name, "CPU seconds", of[other].seconds, of[ours].seconds, least, "ratio>=", **options)

    return [
        ratio("sharing", arms, "copies", "apart", 3.0),
        ratio("attending together", arms, "together", "copies", 1.6),
        Effect("the same said", "share of outputs", same(arms), None, 1.0, "ours>=", control=True),
        Effect(
            "a short prompt", "CPU seconds", short["apart"].seconds, short["together"].seconds, 1.1, "ratio<=",
            control=True,
        ),
        Effect(
            "two calls", "CPU seconds", pair["apart"].seconds, pair["together"].seconds, 1.1, "ratio<=", control=True
        ),
    ]  # fmt: skip


def run_chain(seed: int, workdir: Path) -> list[Effect]:
    """C2: 16 parts one after the other, the client 244 ms away."""
    engine = engine_of(seed)
    program = chain([_text(engine, 250, seed, "part", n) for n in range(16)], 16)
    draw = random.Random(seed)
    trips = [draw.gauss(RTT, SPREAD) for _ in program]

    async def by_client() -> list[str]:
        left = iter(trips)

        async def ask(call: Call, prompt: str) -> str:
            trip = next(left)
            await asyncio.sleep(trip / 2)
            output = (await engine.agenerate([Request(prompt, call.outputs["o"].sampling)]))[0]
            await asyncio.sleep(trip / 2)
            return output.text

        return await one_by_one(program, ask)

    async def by_service() -> list[str]:
        service = Service([LocalHost("engine", engine)])
        await asyncio.sleep(trips[0] / 2)
        texts = await whole(service, program)
        await asyncio.sleep(trips[0] / 2)
        return texts

    def timed(work: Callable[[], Coroutine[Any, Any, list[str]]]) -> tuple[list[str], float]:
        """What is said, and the seconds in which the engine had nothing to do."""
        steps: list[float] = []
        engine.on_step(steps.append)
        begin = time.perf_counter()
        texts = asyncio.run(work())
        return texts, time.perf_counter() - begin - sum(steps)

    timed(by_service)  # what the engine makes at first use is made
    theirs, ours = zip(*((timed(by_client), timed(by_service)) for _ in range(2)))
    saved = min(seconds for _, seconds in theirs) - min(seconds for _, seconds in ours)
    expected = sum(trips[1:])
    equal = float(theirs[0][0] == ours[0][0])
    return [
        Effect("round trips saved", "idle seconds", saved, expected, 0.9, "ratio>="),
        Effect("and nothing else", "idle seconds", saved, expected, 1.1, "ratio<=", control=True),
        Effect("the same said", "share of outputs", equal, None, 1.0, "ours>=", control=True),
    ]


def run_agents(seed: int, workdir: Path) -> list[Effect]:
    """C5: eight files, three rounds of review, an eighth of the paper's lengths."""
    engine = engine_of(seed)
    program = agents(_text(engine, 60, seed, "task"), 8, 3, (40, 24))
    best(engine, program[:4], 1)
    arms = best(engine, program, 1)
    lone = best(engine, agents(_text(engine, 60, seed, "task"), 1, 3, (40, 24)), 1)
    seconds = {name: arm.seconds for name, arm in arms.items()}
    kept = arms["apart"].held, arms["together"].held
    return [
        Effect("keys and values", "tokens at most", *kept, 2.0, "ratio>="),
        Effect("sharing", "CPU seconds", seconds["apart"], seconds["copies"], 1.0, "ratio>="),
        Effect("attending together", "CPU seconds", seconds["copies"], seconds["together"], 1.0, "ratio>="),
        Effect("the same said", "share of outputs", same(arms), None, 1.0, "ours>=", control=True),
        Effect(
            "one file: nothing to share", "tokens at most", lone["apart"].held, lone["together"].held, 1.1, "ratio<=",
            control=True,
        ),
    ]  # fmt: skip


PARTS = {
    "shared": Part(run_shared, timed=True),
    "chain": Part(run_chain, timed=True),
    "map-reduce": Part(run_map_reduce),
    "mixed": Part(run_mixed),
    "agents": Part(run_agents, timed=True),
}


def _text(engine: Engine, tokens: int, seed: int, *names: str | int) -> str:
    """Words that are so many tokens."""
    tokenizer = engine.tokenizer
    ids = tokenizer(words(tokens, seed, *names), add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[:tokens])
