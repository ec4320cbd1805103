"""Map-reduces, and chats beside them, on engines whose steps cost what a formula says (arXiv 2405.19888, figures 13
and 18). The service, its scheduler and its sessions are the real ones.
"""

import asyncio
import random
import statistics
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from maypole.claims.effects import Effect
from maypole.claims.parrot_programs import Ask, Program, map_reduce, one_by_one, whole
from maypole.claims.virtual_engines import VirtualHost, run_virtually
from maypole.core.seeds import derive
from maypole.engine import Sampling
from maypole.serve.parrot.calls import Call, Value, Wanted
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.service import Service

RTT, SPREAD = 0.244, 0.025
"""Seconds to the server and back: mean and deviation of the paper's 100 measurements."""
FULL, SOON = 45_000, 4_096
"""Tokens that the paper's engines hold where many are wanted, and where each is wanted soon."""
CHATTY = 12_288
"""Tokens up to which a token of its chat engines takes less than 40 ms (figure 10)."""
SHEET = {25: 1.72, 50: 2.01, 100: 2.28}
"""Tokens said by each call of the map-reduce -> how many times faster it is than call by call."""


def run_map_reduce(seed: int, workdir: Path) -> list[Effect]:
    """C3: 16 parts of 1,050 tokens."""
    draw = random.Random(seed)
    made = []
    for tokens, sheet in SHEET.items():
        program = map_reduce([f"{seed} {n} ".ljust(draw.randint(1020, 1040), "x") for n in range(16)], tokens)
        soon, _ = run_virtually(_timed(_by_client(Service(_hosts(1, SOON)), program, seed)))
        full, _ = run_virtually(_timed(_by_client(Service(_hosts(1, FULL)), program, seed)))
        ours, _ = run_virtually(_timed(_by_service(Service(_hosts(1, SOON, FULL)), program, seed)))
        metric = "seconds on a virtual clock"
        made += [
            Effect(f"{tokens} tokens: as the sheet's", metric, soon, ours, 0.9 * sheet, "ratio>="),
            Effect(f"{tokens} tokens: not beyond it", metric, soon, ours, 1.1 * sheet, "ratio<=", control=True),
            Effect(f"{tokens} tokens: no grouping to gain", metric, full, ours, 1.1, "ratio<=", control=True),
        ]
    return made


def run_mixed(seed: int, workdir: Path) -> list[Effect]:
    """C4: chats, one a second, beside map-reduces; and eight a second, which one engine cannot answer."""
    made = []
    for engines, apps in ((4, 9), (2, 4)):
        runs = {name: _mixes(name, engines, 1.0, 40, apps, seed, 5) for name in ("full", "soon", "ours")}
        ours = runs.pop("ours")
        chat, reduce = (min(run[i] for run in runs.values()) for i in (0, 1))
        made += [
            Effect(f"{engines} engines: chats", "ms a token", ours[0], chat, 1.1, "ratio<="),
            Effect(f"{engines} engines: map-reduces", "seconds", ours[1], reduce, 1.15, "ratio<="),
        ]
    busy = {name: _mixes(name, 4, 8.0, 160, 4, seed, 1) for name in ("full", "soon", "ours", "one for chats")}
    chat = min(busy["full"][0], busy["soon"][0])
    one = busy["one for chats"][0]
    return [
        *made,
        Effect("8 chats a second: chats", "ms a token", busy["ours"][0], chat, 1.1, "ratio<="),
        Effect("8 chats a second: one engine for them", "ms a token", one, chat, 2.0, "ratio>=", control=True),
    ]


def mixed(policy: str, engines: int, rate: float, chats: int, apps: int, seed: int, chunk: int | None = None) -> Any:
    """(milliseconds a token of the chats, seconds of a map-reduce), means of one run.

    `policy` is "ours", or that of a client who asks call by call: engines kept "full", or for what is wanted "soon",
    or "one for chats", which all go there. With `chunk` long prompts are read in stretches.
    """
    bounds = {"full": (FULL, FULL), "soon": (CHATTY, CHATTY)}.get(policy, (CHATTY, FULL))
    apart = policy == "one for chats"
    hosts = [
        VirtualHost(f"engine {n}", Capacity(*bounds), shares=policy == "ours", chunk=chunk,
                    models=({"chat"} if n == 0 else {"work"}) if apart else None)
        for n in range(engines)
    ]  # fmt: skip
    draw = random.Random(seed)

    async def run() -> tuple[float, float]:
        service = Service(hosts)
        clock = asyncio.get_running_loop().time

        async def chat(at: float, prompt: str, tokens: int) -> float:
            await asyncio.sleep(at)
            begin, trip = clock(), draw.gauss(RTT, SPREAD)
            await asyncio.sleep(trip)
            await whole(service, [_plain(prompt, tokens, "chat")], "latency")
            return (clock() - begin - trip) / tokens

        async def app(at: float, program: Program, n: int) -> float:
            await asyncio.sleep(at)
            return await _timed((_by_service if policy == "ours" else _by_client)(service, program, derive(seed, n)))

        at, talks = 0.0, []
        for n in range(chats):
            at += draw.expovariate(rate)
            size, tokens = (int(min(max(draw.lognormvariate(*law), 32), most)) for law, most in LENGTHS)
            talks.append(chat(at, f"{seed} {n} ".ljust(size, "q"), tokens))
        parts = [[f"{seed} {n} {m} ".ljust(1040, "x") for m in range(16)] for n in range(apps)]
        programs = [app(draw.uniform(0, chats / rate), map_reduce(parts[n], 50), n) for n in range(apps)]
        spoken = asyncio.gather(*talks)
        done = await asyncio.gather(*programs)
        return statistics.mean(await spoken) * 1000, statistics.mean(done)

    return run_virtually(run())[0]


LENGTHS = (((5.5, 0.8), 1500), ((5.0, 0.6), 500))
"""Of chats: prompt and answer, log-normal around 245 and 148 tokens, and their most."""


def _mixes(policy: str, engines: int, rate: float, chats: int, apps: int, seed: int, runs: int) -> list[float]:
    """`mixed`, the mean of several runs."""
    found = [mixed(policy, engines, rate, chats, apps, derive(seed, "mixed", run)) for run in range(runs)]
    return [statistics.mean(numbers) for numbers in zip(*found)]


def _hosts(engines: int, soon: int, full: int | None = None) -> list[VirtualHost]:
    """Engines of the client's side hold one number of tokens, and share nothing."""
    capacity = Capacity(soon, full or soon)
    return [VirtualHost(f"engine {n}", capacity, shares=full is not None) for n in range(engines)]


async def _timed(work: Awaitable[Any]) -> float:
    clock = asyncio.get_running_loop().time
    begin = clock()
    await work
    return clock() - begin


async def _by_client(service: Service, program: Program, seed: int) -> None:
    """Every call is a request of its own, a round trip away."""
    draw = random.Random(seed)

    async def ask(call: Call, prompt: str) -> str:
        trip = draw.gauss(RTT, SPREAD)
        await asyncio.sleep(trip / 2)
        text = (await whole(service, [_plain(prompt, call.outputs["o"].sampling.max_tokens, "work")], "throughput"))[0]
        await asyncio.sleep(trip / 2)
        return text

    asking: Ask = ask
    await one_by_one(program, asking)


async def _by_service(service: Service, program: Program, seed: int) -> None:
    trip = random.Random(seed).gauss(RTT, SPREAD)
    await asyncio.sleep(trip / 2)
    await whole(service, program)
    await asyncio.sleep(trip / 2)


def _plain(prompt: str, tokens: int, model: str) -> Call:
    """A request without a program around it."""
    wanted = Wanted(Sampling(max_tokens=tokens))
    return Call(template="{{p}}{{o}}", inputs={"p": Value(prompt)}, outputs={"o": wanted}, models=(model,))
