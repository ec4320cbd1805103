"""Programs of many calls: given to maypole's server whole, beside the same server asked call by call, and a peer's.

A random Llama of 11M parameters (S) in fp32, greedy, every side behind HTTP with a client 244 ms away. A chain of 16
parts; a map-reduce of 16; 32 questions to two applications whose system prompts have 1,000 tokens; eight agents that
write, review and revise files in three rounds; and eight chats beside a map-reduce. Where a gain comes from is told by
cases that differ in one thing: *sharing* compares the client's calls with and without the server's prefix cache, *no
round trips* a client at no distance with the one that is far, *one program* the whole with the client's calls in the
same cache, which leaves how calls are placed and batched; *all* is everything together, and *llama.cpp's server* the
same weights there. Where something is computed less the server's CPU seconds count, else the client's seconds; for
chats beside a map-reduce these are the mean seconds of a chat, or those of the map-reduce.

Where there is nothing to share (short prompts, different parts), no one to wait for (one call), no distance, or
nothing beside it, the gain must vanish. Both sides of a case take turns on servers that stay up; every turn has texts
and a cache of its own.
"""

import asyncio
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from peers.random_llamas import language_model, random_llama
from peers.served import PATIENCE, completions, cpu_seconds, peak_rss_bytes, served
from side_by_side import Arm, Case, Measured, main

from maypole.claims.parrot_programs import (
    Program,
    agents,
    chain,
    map_reduce,
    one_by_one,
    results,
    shared_prompts,
    words,
)
from maypole.core.seeds import derive
from maypole.serve.parrot.backends import Remote
from maypole.serve.parrot.calls import Call

_SALTS = count()
RTT, SPREAD = 0.244, 0.025
"""Seconds to the server and back: mean and deviation of 100 measurements in the artifact of arXiv 2405.19888."""
WHOLE: dict[str, Any] = {"side": "program", "rtt": RTT}
CACHED: dict[str, Any] = {"side": "client", "rtt": RTT, "cached": True}
PLAIN: dict[str, Any] = {"side": "client", "rtt": RTT, "cached": False}
NEAR: dict[str, Any] = {"side": "client", "rtt": 0.0, "cached": True}
LLAMA_CPP: dict[str, Any] = {"side": "llama_cpp.server", "rtt": RTT}


def cases(quick: bool) -> list[Case]:
    """Quick: everything together, and against the peer; one round."""
    rounds = 1 if quick else 3

    def case(
        work: str, gain: str, ours: Arm, peer: str, theirs: Arm, target: float | None = None, clock: str = "wall",
        at_most: float | None = None,
    ) -> Case:  # fmt: skip
        both = {"work": work, "case": gain}
        return Case(
            name=f"{work}: {gain}", ours={**ours, **both}, peers={peer: {**theirs, **both}}, unit="calls",
            check=None, tolerance=0.0, clock=clock, rounds=rounds, target=target, at_most=at_most,
            needs=("llama_cpp", "gguf") if peer.startswith("llama.cpp") else (),
        )  # fmt: skip

    def sharing(work: str, at_most: float | None = None) -> Case:
        return case(work, "sharing", CACHED, "client, no cache", PLAIN, clock="cpu", at_most=at_most)

    def no_trips(work: str) -> Case:
        return case(work, "no round trips", NEAR, "client", CACHED)

    def one_program(work: str, at_most: float | None = None) -> Case:
        return case(work, "one program", WHOLE, "client", CACHED, clock="cpu", at_most=at_most)

    def of(work: str, most: float, peer: float, *parts: Case) -> list[Case]:
        together = case(work, "all", WHOLE, "client, no cache", PLAIN, most)
        beside = case(work, "llama.cpp's server", WHOLE, "llama.cpp's server", LLAMA_CPP, peer, "cpu")
        return [together, beside] if quick else [together, beside, *parts]

    gone = 1.1
    return [
        *of("chain", 1.2, 1.2, no_trips("chain"), one_program("chain")),
        case("chain", "at no distance", {**WHOLE, "rtt": 0.0}, "client at no distance", NEAR, at_most=gone),
        *of("map-reduce", 1.1, 1.2, no_trips("map-reduce"), one_program("map-reduce")),
        sharing("map-reduce", gone),
        *of("shared prompts", 2.0, 2.0, sharing("shared prompts"), one_program("shared prompts")),
        sharing("short prompts", gone),
        *of("agents", 2.0, 2.0, sharing("agents"), no_trips("agents"), one_program("agents")),
        *of("chats beside", 1.0, 1.0, one_program("chats beside")),
        one_program("chats alone", gone),
        *of("map-reduce beside", 1.0, 1.0, one_program("map-reduce beside")),
        case("one call", "all", WHOLE, "client, no cache", PLAIN, at_most=gone),
    ]


def programs(work: str, seed: int) -> tuple[Program, Program]:
    """(The program that is measured, what runs beside it.)"""
    parts = [words(150, seed, "part", n) for n in range(16)]
    if work == "chain":
        return chain(parts, 16), []
    if work == "map-reduce":
        return map_reduce(parts, 32), []
    if work == "shared prompts":
        systems = [words(240, seed, "system", n) for n in range(2)]
        return shared_prompts(systems, [words(8, seed, n) for n in range(32)], 32), []
    if work == "short prompts":
        return shared_prompts([words(4, seed, "system")], [words(60, seed, n) for n in range(32)], 32), []
    if work == "agents":
        return agents(words(40, seed, "task"), 8, 3, (24, 16)), []
    if work == "one call":
        return map_reduce(parts, 32)[:1], []
    chats = shared_prompts([words(20, seed, "system")], [words(40, seed, "chat", n) for n in range(8)], 24)
    if work == "chats alone":
        return chats, []
    reduce = map_reduce(parts, 48)
    return (chats, reduce) if work == "chats beside" else (reduce, chats)


class Servers:
    """The servers of one kind of work at a time, each up from its first turn on, and how many turns each arm had."""

    def __init__(self) -> None:
        self._stack, self._work = ExitStack(), ""
        self._up: dict[str, tuple[str, int]] = {}
        self._turns: Counter[str] = Counter()

    def of(self, arm: Arm) -> tuple[str, int]:
        """(URL, process id) of what the arm asks."""
        if arm["work"] != self._work:
            self.close()
            self._work = arm["work"]
        side = "llama_cpp.server" if arm["side"] == "llama_cpp.server" else "maypole"
        if side not in self._up:
            lm = language_model(random_llama("S"))
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            command = _maypole(lm, folder) if side == "maypole" else _llama_cpp(lm, folder)
            self._up[side] = url, _ = self._stack.enter_context(served(command, folder / "log"))
            completions(url, "model", ["warm up"] * 2, 4)
        return self._up[side]

    def seed(self, arm: Arm) -> int:
        """Of the texts of the arm's next turn: equal on both sides of a case, and never the same again."""
        turn, self._turns[repr(arm)] = self._turns[repr(arm)], self._turns[repr(arm)] + 1
        return derive(turn, arm["work"], arm["case"])

    def close(self) -> None:
        self._stack.close()
        self._up.clear()


SERVERS = Servers()


def measure(arm: Arm) -> Measured:
    """Run the program once, with what belongs beside it."""
    url, process = SERVERS.of(arm)
    cpu = cpu_seconds(process)
    texts, seconds = _ran(url, arm, SERVERS.seed(arm))
    spent, peak = cpu_seconds(process) - cpu, peak_rss_bytes(process)
    check = {str(n): float(zlib.crc32(text.encode())) for n, text in enumerate(texts)}
    return Measured(amount=float(len(texts)), wall_seconds=seconds, cpu_seconds=spent, peak_rss_bytes=peak, check=check)


def _maypole(lm: Any, folder: Path) -> list[str]:
    from maypole.models.saving import save

    save(lm, folder / "model")
    command = [sys.executable, "-m", "maypole.cli.main", "serve", str(folder / "model"), "--dtype", "float32"]
    return [*command, "--threads", "1", "--max-seqs", "64", "--port", "{port}"]


def _llama_cpp(lm: Any, folder: Path) -> list[str]:
    from maypole.models.gguf import export_gguf

    export_gguf(lm, folder / "model.gguf", dtype="f32")
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "model.gguf"), "--port", "{port}"]
    command += ["--n_threads", "1", "--n_threads_batch", "1", "--logits_all", "false", "--n_ctx", "4096"]
    return [*command, "--type_k", "0", "--type_v", "0"]  # as exact as the weights


def _ran(url: str, arm: Arm, seed: int) -> tuple[list[str], float]:
    """What the program said, and the seconds that count."""
    program, beside = programs(arm["work"], seed)
    run = _whole if arm["side"] == "program" else _calls
    chats = arm["work"] in ("chats beside", "chats alone")
    salt = next(_SALTS)

    async def everything() -> tuple[list[str], float]:
        other = asyncio.ensure_future(run(url, arm, beside, 1, "throughput", salt)) if beside else None
        if not chats:
            said, seconds = await run(url, arm, program, 0, "latency", salt)
        else:  # each by itself, one every 100 ms
            async def chat(n: int) -> tuple[list[str], float]:
                await asyncio.sleep(0.1 * (n + 1))
                return await run(url, arm, [program[n]], 2 + n, "latency", salt)

            found = await asyncio.gather(*(chat(n) for n in range(len(program))))
            said, seconds = [text for texts, _ in found for text in texts], sum(s for _, s in found) / len(found)
        if other is not None:
            await other
        return said, seconds

    return asyncio.run(everything())


async def _calls(
    url: str, arm: Arm, program: Program, seed: int, criteria: str, salt: int
) -> tuple[list[str], float]:  # fmt: skip
    """Each call a request of a client that waits for what it needs; `salt` is the turn's own cache."""
    draw = random.Random(seed)
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_connections=64)) as http:

        async def ask(call: Call, prompt: str) -> str:
            body: dict[str, Any] = {
                "model": "model", "prompt": prompt, "max_tokens": call.outputs["o"].sampling.max_tokens,
                "temperature": 0.0, "ignore_eos": True, "repeat_penalty": 1.0,
            }  # fmt: skip
            if arm["side"] == "client":
                body["cache_salt"] = f"turn {salt}" if arm["cached"] else f"call {next(_SALTS)}"
            trip = draw.gauss(arm["rtt"], SPREAD) if arm["rtt"] else 0.0
            await asyncio.sleep(trip / 2)
            answer = (await http.post(f"{url}/v1/completions", json=body)).raise_for_status().json()
            await asyncio.sleep(trip / 2)
            return answer["choices"][0]["text"]

        begin = time.perf_counter()
        said = await one_by_one(program, ask)
        return said, time.perf_counter() - begin


async def _whole(
    url: str, arm: Arm, program: Program, seed: int, criteria: Any, salt: int
) -> tuple[list[str], float]:  # fmt: skip
    """The program goes out and its results come back: one exchange, whatever its calls are."""
    session = await asyncio.to_thread(Remote, url)
    draw = random.Random(seed)

    async def trip() -> None:
        await asyncio.sleep(draw.gauss(arm["rtt"], SPREAD) if arm["rtt"] else 0.0)

    def there(work: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, session.loop))

    begin = time.perf_counter()
    await trip()
    wanted = [(at, "o") for at in results(program)]
    hurried = [replace(c, outputs={"o": replace(c.outputs["o"], criteria=criteria)}) for c in program]
    sent = [hurried[at] if (at, "o") in wanted else made for at, made in enumerate(program)]
    ids = [found[0] for found in await there(session.submit(sent, wanted))]
    await asyncio.gather(*(there(session.get(ids[at], criteria, None)) for at, _ in wanted))
    seconds = time.perf_counter() - begin
    said = [await there(session.get(id, criteria, None)) for id in ids]
    await there(session.close())
    await asyncio.to_thread(session.end)
    return said, seconds


if __name__ == "__main__":
    with closing(SERVERS):
        main("serve_programs", cases, measure, "llama-cpp-python", here=True)
