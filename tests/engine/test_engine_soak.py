"""Random schedules through the public engine: whatever comes, goes and changes, nobody is lost, starved or lied to."""

import asyncio
import gc
import random
import threading
import weakref
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maypole.core.errors import UserError
from maypole.engine import (
    NO_ADAPTER,
    AdapterConfig,
    Engine,
    EngineConfig,
    Merged,
    Output,
    Request,
    Sampling,
    ScoreRequest,
)
from maypole.engine.request import Target
from maypole.models.saving import save
from tests.engine.engine_fixtures import check, lm_of, random_ids, with_adapters

NAMES = ("a", "b", "c", "d")
VARIANTS = ("v0", "v1", "v2", "v3", "v4")
CLIENTS, ACTIONS = 6, 8
PATIENCE = 60.0


def prompts() -> list[list[int]]:
    trunk, *ends = random_ids([40, 3, 9, 20, 6])
    return [trunk + end for end in ends[:3]] + ends


class Soak:
    """Clients that do several things each, drawn from a seed, and what they saw.

    `history` has, for every name and for the base (None), which variant of its weights came with which version.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.bases = {"w0": lm_of(seed=0), "w1": lm_of(seed=1)}
        self.varied = with_adapters(lm_of(seed=0), *VARIANTS)
        for name in VARIANTS:
            save(self.varied.with_adapter(name), folder / name)
        per_token = Engine(lm_of())._generator().memory.bytes_per_token
        config = EngineConfig(
            max_seqs=self.draw.choice([2, 5, 16]),
            max_batch_tokens=self.draw.choice([16, 64]),
            kv_bytes=per_token * self.draw.choice([260, 5000]),
            adapters=AdapterConfig(max_active=self.draw.choice([2, 3, 8]), cycle_time=0.0),
        )
        self.engine = Engine(self.bases["w0"], config)
        self.history: dict[str | None, list[tuple[int, str]]] = {None: [(0, "w0")], **{name: [] for name in NAMES}}
        self.there: set[str] = set()
        self.removed: set[str] = set()
        self.seen: list[Output] = []
        self.refused: list[str] = []
        self.adapters: list[weakref.ref[torch.Tensor]] = []
        self.steps = 0
        self.due: dict[int, int] = {}
        self._changing = asyncio.Lock()
        self._watch()

    # What is checked at every step

    def _watch(self) -> None:
        scheduler = self.engine._generator()
        step = scheduler.step

        def watched() -> Any:
            found = step()
            self.steps += bool(found)
            check(scheduler)
            everybody = [*scheduler.running, *scheduler.waiting]
            for sequence in everybody:
                before = [s for s in everybody if s.arrival <= sequence.arrival]
                work = sum(len(s.prompt) + s.limit for s in before)
                assert self.steps <= self.due.setdefault(sequence.arrival, self.steps + 4 * work + 100), "starved"
            for sequence in scheduler.running:
                if sequence.adapter is not None:
                    layer: Any = next(iter(sequence.adapter.layers.values()))
                    self.adapters.append(weakref.ref(layer.down))
            return found

        scheduler.step = watched  # type: ignore[method-assign]

    # What clients do

    async def client(self) -> None:
        doing = [self.ask] * 3 + [self.stream] * 3 + [self.leave] * 2 + [self.give_up, self.score] + [self.change] * 2
        for _ in range(ACTIONS):
            action = self.draw.choice(doing)
            try:
                await action()
            except UserError as error:
                self.refused.append(str(error))

    async def ask(self) -> None:
        self.seen += await self.engine.agenerate(self.requests(self.draw.randint(1, 3)))

    async def stream(self) -> None:
        said: dict[tuple[int, int], list[int]] = {}
        async for turn in self.engine.streams(self.requests(self.draw.randint(1, 3))):
            for place, chunk in turn:
                said.setdefault((place, chunk.index), []).extend(chunk.token_ids)
                if chunk.output is not None:
                    assert said[place, chunk.index] == chunk.output.token_ids
                    self.seen.append(chunk.output)

    async def leave(self) -> None:
        turns = self.draw.randint(0, 5)
        async with aclosing(self.engine.streams(self.requests(2))) as stream:
            async for _ in stream:
                turns -= 1
                if turns < 0:
                    break

    async def give_up(self) -> None:
        asked = asyncio.ensure_future(self.engine.agenerate(self.requests(2)))
        for _ in range(self.draw.randint(0, 20)):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        if not asked.cancelled():
            self.seen += asked.result()

    async def score(self) -> None:
        prompt, other = self.draw.sample(prompts(), 2)
        await asyncio.to_thread(self.engine.score, [ScoreRequest(prompt, [other[:5]], adapter=self.target())])

    async def change(self) -> None:
        """Put an adapter in a place, replace it, take it away, or change the base."""
        async with self._changing:
            name, variant = self.draw.choice(NAMES), self.draw.choice(VARIANTS)
            chance = self.draw.random()
            mode: Any = self.draw.choice(["finish", "abort"])
            if chance < 0.15:
                base = self.draw.choice([*self.bases])
                state = self.bases[base].model.state_dict()
                version = await asyncio.to_thread(self.engine.update, state, mode=mode)
                self.history[None].append((version, base))
            elif chance < 0.35 and name in self.there:
                self.there.discard(name)
                self.removed.add(name)
                await asyncio.to_thread(self.engine.adapters.remove, name, drain=self.draw.random() < 0.7)
            elif chance < 0.7:
                version = await asyncio.to_thread(self.engine.update, self.folder / variant, name, mode=mode)
                self.history[name].append((version, variant))
                self.there.add(name)
            else:
                await self.add(name, variant)

    async def add(self, name: str, variant: str) -> None:
        await asyncio.to_thread(self.engine.adapters.add, name, self.folder / variant)
        nothing = Request("", Sampling(max_tokens=0), adapter=name)
        self.history[name].append((self.engine.generate([nothing])[0].version, variant))
        self.there.add(name)

    def requests(self, count: int) -> list[Request]:
        made: list[Request] = []
        for _ in range(count):
            sampling = Sampling(
                max_tokens=self.draw.choice([1, 5, 12, 20, 50]), temperature=self.draw.choice([0.0, 1.0]),
                ignore_eos=True, seed=self.draw.randint(0, 99), n=self.draw.choice([1, 1, 2]),
            )  # fmt: skip
            salt = self.draw.choice([None, None, "mine"])
            timeout = self.draw.choice([None, None, None, 0.0, 0.01])
            target = self.target()
            made.append(Request(self.draw.choice(prompts()), sampling, target, cache_salt=salt, timeout=timeout))
        return made

    def target(self) -> Target:
        there = sorted(self.there)
        if not there or self.draw.random() < 0.2:
            return NO_ADAPTER
        if len(there) > 1 and self.draw.random() < 0.3:
            kind: Any = self.draw.choice(["cat", "linear"])
            return Merged(self.draw.sample(there, 2), [0.5, self.draw.choice([1.0, -0.5])], kind)
        return self.draw.choice(there)

    # What must be true in the end

    def expected(self) -> list[list[int]]:
        """What each output should have said, by engines that only have the weights of its version."""
        wanted: list[list[int]] = [[] for _ in self.seen]
        for base, lm in self.bases.items():
            engine = Engine(replace(lm, model=lm.model))
            for name in VARIANTS:
                engine.update(self.folder / name, name)
            mine = [i for i, output in enumerate(self.seen) if self.at(None, output.version) == base]
            requests = [self.as_it_was(self.seen[i]) for i in mine]
            found = iter(engine.generate(requests))
            for i, request in zip(mine, requests):
                samples = [next(found) for _ in range(request.sampling.n)]
                wanted[i] = samples[self.seen[i].index].token_ids
        return wanted

    def at(self, name: str | None, version: int) -> str:
        return [variant for since, variant in self.history[name] if since <= version][-1]

    def as_it_was(self, output: Output) -> Request:
        target = output.request.adapter or NO_ADAPTER
        if isinstance(target, Merged):
            target = replace(target, adapters=[self.at(name, output.version) for name in target.adapters])
        elif target:
            target = self.at(target, output.version)
        return replace(output.request, adapter=target, timeout=None)


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_lose_starve_and_mislead_nobody(seed: int, tmp_path: Path):
    soak = Soak(seed, tmp_path)

    async def everybody() -> None:
        async with asyncio.timeout(PATIENCE):
            for name in NAMES:
                await soak.add(name, VARIANTS[0])
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(soak.client())
            while soak.engine.stats()["running"] or soak.engine.stats()["waiting"]:
                await asyncio.sleep(0)

    asyncio.run(everybody())
    assert all("no adapter" in said for said in soak.refused)  # taken away after it was chosen
    assert soak.removed or not soak.refused
    reasons = {output.finish_reason for output in soak.seen}
    assert {"length", "timeout"} <= reasons <= {"length", "timeout", "update", "cancelled"}
    soak.seen = [output for output in soak.seen if output.token_ids]  # what never began has no version
    for output, wanted in zip(soak.seen, soak.expected()):
        whole = output.finish_reason == "length"
        assert output.token_ids == (wanted if whole else wanted[: len(output.token_ids)]), output
    stats = soak.engine.stats()
    assert (stats["running"], stats["waiting"], stats["kv_tokens"]) == (0, 0, 0)
    for name in sorted(soak.there):
        soak.engine.adapters.remove(name)
    assert not [*soak.engine.adapters]
    soak.engine.close()
    for thread in threading.enumerate():
        if thread.name == "maypole-adapter":
            thread.join()
    gc.collect()
    assert [ref for ref in soak.adapters if ref() is not None] == []
