"""The claim of parrot: its programs, its virtual engines, and that it misses where the scheduler is not there."""

import asyncio
import itertools

import pytest

from maypole.claims import parrot_mixes
from maypole.claims.parrot import PARTS
from maypole.claims.parrot_mixes import mixed, run_map_reduce
from maypole.claims.parrot_programs import agents, chain, map_reduce, one_by_one, results, shared_prompts, whole
from maypole.claims.verdict import combine
from maypole.claims.virtual_engines import Costs, VirtualHost, run_virtually
from maypole.engine import Sampling
from maypole.serve.parrot.calls import Call
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.service import Service


def missed(effects) -> set[str]:
    return {effect["name"] for effect in combine([effects]) if not effect["holds"]}


def test_the_map_reduce_gains_what_the_sheet_says(tmp_path):
    assert missed(run_map_reduce(0, tmp_path)) == set()


def test_without_groups_the_map_reduce_gains_next_to_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parrot_mixes, "FULL", parrot_mixes.SOON)
    assert missed(run_map_reduce(0, tmp_path)) == {f"{n} tokens: as the sheet's" for n in (25, 50, 100)}


def test_a_mix_is_the_same_each_time_and_another_for_another_seed():
    once = mixed("ours", 2, 2.0, 8, 1, 5)
    assert mixed("ours", 2, 2.0, 8, 1, 5) == once
    assert mixed("ours", 2, 2.0, 8, 1, 6) != once


def test_a_step_of_a_virtual_engine_costs_what_the_formula_says():
    host = VirtualHost("a", Capacity(), Costs(step=1.0, read=0.01, said=0.1, held=0.001))

    async def work() -> int:
        service = Service([host])
        made = chain(["p" * 40], 2)
        return len((await whole(service, made))[0])

    said, seconds = run_virtually(work())
    prompt = len("Part: " + "p" * 40 + "\nSummary:")
    assert said == 2
    assert seconds == pytest.approx((1 + 0.01 * prompt + 0.1 + 0.001 * prompt) + (1 + 0.1 + 0.001 * (prompt + 1)))


def test_a_prompt_read_in_stretches_lets_others_speak_in_between():
    def longest_pause(chunk: int | None) -> float:
        host = VirtualHost("a", Capacity(), Costs(step=0.0, read=0.01, said=0.01, held=0.0), chunk=chunk)

        async def work() -> float:
            service = Service([host])
            session = service.open()
            clock, marks = asyncio.get_running_loop().time, []
            speaker = service.submit(session, shared_prompts(["s"], ["q"], 200))[0][0]
            asyncio.get_running_loop().call_later(1.0, service.submit, session, shared_prompts(["s" * 900], ["q"], 1))
            async for _ in service.stream(session, speaker.output):
                marks.append(clock())
            return max(b - a for a, b in itertools.pairwise(marks))

        return run_virtually(work())[0]

    assert longest_pause(None) > 9.0
    assert longest_pause(50) < 1.0


def test_nothing_left_to_wait_for_is_an_error_and_no_endless_loop():
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        run_virtually(work())


@pytest.mark.parametrize(
    "program",
    [
        chain(["a", "b", "c"], 3), map_reduce(["a", "b", "c"], 3), shared_prompts(["s", "t"], ["q", "r", "u"], 3),
        agents("task", 2, 2, (3, 2)),
    ],
    ids=["chain", "map-reduce", "shared", "agents"],
)  # fmt: skip
def test_a_client_and_the_service_ask_for_the_same(program):
    def prompts(ask_whole: bool) -> tuple[list[str], list[str]]:
        asked: list[str] = []

        async def work() -> list[str]:
            async def ask(call: Call, prompt: str) -> str:
                asked.append(prompt)
                sampling: Sampling = call.outputs["o"].sampling
                return "x" * sampling.max_tokens

            return await one_by_one(program, ask)

        async def served() -> list[str]:
            host = VirtualHost("a", Capacity())
            read = host.read

            async def noted(parts, *rest):
                asked.append("".join(part.text for part in parts))
                return await read(parts, *rest)

            host.read = noted  # type: ignore[method-assign]
            return await whole(Service([host]), program)

        said, _ = run_virtually(served() if ask_whole else work())
        return said, sorted(asked)

    assert prompts(True) == prompts(False)
    assert len(results(program)) >= 1


def test_all_parts_of_the_sheet_are_there():
    assert list(PARTS) == ["shared", "chain", "map-reduce", "mixed", "agents"]
