"""Adapters are loaded when a request asks, beside what runs, and however they come and go every answer is the same."""

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maypole.core.errors import UserError
from maypole.engine import NO_ADAPTER, Engine, Request, ScoreRequest
from maypole.engine.adapter_files import Base
from maypole.engine.adapter_sources import Directory
from maypole.engine.adapter_store import AdapterStore, Engaged
from maypole.engine.settings import AdapterConfig
from maypole.engine.worker import Turnstile
from tests.engine.adapter_fixtures import (
    GREEDY,
    adapted,
    cost_of,
    engine_of,
    folder_of,
    held_up,
    step_until_done,
    step_while,
    submitted,
)
from tests.engine.engine_fixtures import lm_of, random_ids

NAMES = [f"a{i:02}" for i in range(25)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 adapters that differ."""
    return folder_of(tmp_path_factory.mktemp("many"), adapted(*NAMES))


def requests_of(names: list[str], seed: int = 0) -> list[Request]:
    prompts = random_ids([3 + i % 9 for i in range(len(names))], seed)
    return [Request(prompt, GREEDY, adapter=name) for prompt, name in zip(prompts, names)]


@pytest.fixture(scope="module")
def wanted() -> dict[str, list[int]]:
    """What each of the 25 says to its own prompt."""
    engine = engine_of()
    engine.update(adapted(*NAMES).with_adapter(None))
    return dict(zip(NAMES, (o.token_ids for o in engine.generate(requests_of(NAMES)))))


def states(engine: Any) -> dict[str, str]:
    return {status.id: status.state for status in engine.adapters.list()}


def test_an_adapter_of_a_folder_is_loaded_when_a_request_asks_for_it(many: Path, wanted: dict[str, list[int]]):
    engine = engine_of(many)
    assert list(engine.adapters) == NAMES
    assert set(states(engine).values()) == {"disk"}
    outputs = engine.generate(requests_of(NAMES)[:2])
    assert [o.token_ids for o in outputs] == [wanted["a00"], wanted["a01"]]
    first, *_, last = engine.adapters.list()
    assert (first.state, first.rank, first.requests, last.state) == ("ready", 4, 1, "disk")
    assert first.sha256 is not None
    assert len(first.sha256) == 64
    assert first.bytes == engine.adapters.loaded("a00").bytes  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no adapter 'nobody'"):
        engine.generate([Request([5], adapter="nobody")])


def test_eviction_and_reload_between_steps_change_no_answer(many: Path, wanted: dict[str, list[int]]):
    """25 adapters take turns in the room of three; what is stacked counts."""
    cost = cost_of(many, "a00")
    engine = engine_of(many, max_bytes=3 * cost, cycle_time=0.0, max_seqs=6)
    sequences = submitted(engine, requests_of(NAMES * 2))
    lanes, exchange = engine._runner.lanes, engine.adapters._places.exchange

    def going_on() -> bool:
        loaded = [a for n in NAMES if (a := engine.adapters.loaded(n)) is not None]
        assert sum(adapter.bytes for adapter in loaded) + lanes.stacked_bytes <= exchange.cost <= 3 * cost
        return not all(s.done for s in sequences)

    step_while(engine, going_on)
    assert [s.generated for s in sequences[:25]] == [wanted[n] for n in NAMES]
    assert engine.adapters.stats()["evictions"] > 20
    again = engine.generate(requests_of(NAMES)[::-1])
    assert [o.token_ids for o in again] == [wanted[n] for n in NAMES[::-1]]


def test_a_slow_adapter_delays_nobody_else_and_waiting_for_it_is_rest(many: Path, monkeypatch: pytest.MonkeyPatch):
    engine = engine_of(many)
    with held_up(monkeypatch, "a00") as go:
        slow = submitted(engine, requests_of(["a00"]))
        assert engine.generate(requests_of(["a01", NO_ADAPTER, "a02"]))
        assert not slow[0].done
        assert engine._step() is False
        steps: list[bool] = []
        monkeypatch.setattr(engine, "_step", lambda real=engine._step: steps.append(real()) or steps[-1])
        thread = threading.Thread(target=engine.generate, args=(requests_of(["a00"]),))
        thread.start()
        while not steps:
            time.sleep(0)
        go.set()
        thread.join()
    assert slow[0].done
    assert steps.count(True) >= 12
    assert steps.count(False) < 100


def test_a_time_limit_ends_while_the_adapter_is_on_its_way(many: Path, monkeypatch: pytest.MonkeyPatch):
    engine = engine_of(many)
    with held_up(monkeypatch, "a00"):
        (output,) = engine.generate([Request([5, 6], GREEDY, adapter="a00", timeout=0.05)])
        assert (output.finish_reason, output.token_ids) == ("timeout", [])


def test_a_rewritten_adapter_is_noticed_by_the_next_request_and_no_answer_mixes_the_two(tmp_path: Path):
    folder = folder_of(tmp_path, adapted("a", "b"))
    old, new = (engine_of(folder).generate(requests_of([name]))[0].token_ids for name in ("a", "b"))
    engine = engine_of(folder)
    running = submitted(engine, requests_of(["a"]))
    step_while(engine, lambda: len(running[0].generated) < 5)
    (folder / "b" / "adapter_model.safetensors").rename(folder / "a" / "adapter_model.safetensors")
    later = submitted(engine, requests_of(["a"]))
    step_until_done(engine, [*running, *later])
    outputs = [s.output for s in (*running, *later) if s.output is not None]
    assert [o.token_ids for o in outputs] == [old, new]
    assert [o.version for o in outputs] == [0, 1]
    assert engine.adapters.stats()["active"] == 1
    engine.adapters._places.exchange.leave(engine.adapters._entries["a"])  # loaded again it is the same version
    assert engine.generate(requests_of(["a"]))[0].version == 1


def test_an_error_is_told_to_all_who_wait_and_then_tried_again(many: Path, tmp_path: Path):
    folder = folder_of(tmp_path, adapted("a", "b"))
    weights = folder / "a" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    engine = engine_of(folder)
    sequences = submitted(engine, requests_of(["a", "b", "a", NO_ADAPTER]))
    step_until_done(engine, sequences)
    assert [type(s.error) for s in sequences] == [UserError, type(None), UserError, type(None)]
    assert "adapter 'a': adapter_model.safetensors is damaged" in str(sequences[0].error)
    with pytest.raises(UserError, match="damaged"):
        engine.generate(requests_of(["a"]))
    weights.write_bytes(whole)
    assert engine.generate(requests_of(["a"]))[0].finish_reason == "length"


def test_an_error_that_nobody_was_told_does_not_outlive_the_files_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = folder_of(tmp_path, adapted("a"))
    config = folder / "a" / "adapter_config.json"
    good = config.read_text()
    config.write_text("{")
    engine = engine_of(folder)
    rung = engine._bell.count
    engine._sequences(requests_of(["a"]))  # given up before it is in the queue
    engine._bell.rest(rung)
    while engine.adapters._entries["a"].job is not None:
        time.sleep(0)
    assert states(engine) == {"a": "error"}
    config.write_text(good)
    assert engine.generate(requests_of(["a"]))[0].finish_reason == "length"


def test_who_asked_first_starts_first_though_the_adapter_comes_while_the_queue_is_read(
    many: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(many, max_seqs=1)
    engine.generate(requests_of(["a00"]))
    admit, asked = engine.adapters.admit, list[Any]()

    def late(target: Any) -> Any:
        asked.append(target)
        return None if len(asked) == 1 else admit(target)

    monkeypatch.setattr(engine.adapters, "admit", late)
    first, second = sequences = submitted(engine, requests_of(["a00", "a00"]))
    step_while(engine, lambda: not first.generated)
    assert not second.generated
    step_until_done(engine, sequences)


@pytest.mark.parametrize("drain", [True, False])
def test_a_removed_adapter_drains_or_is_cancelled_and_nothing_of_it_stays(many: Path, drain: bool):
    engine = engine_of(many, max_seqs=2)
    sequences = submitted(engine, requests_of(["a00", "a01", "a00"]))
    first = sequences[0].generated
    step_while(engine, lambda: len(first) < 3)
    layer: Any = next(iter(engine.adapters.loaded("a00").layers.values()))  # type: ignore[union-attr]
    old = weakref.ref(layer.down)
    del layer
    engine.adapters.remove("a00", drain=drain)
    assert "a00" not in engine.adapters
    assert states(engine).get("a00") == ("draining" if drain else None)
    with pytest.raises(UserError, match="no adapter 'a00'"):
        engine.generate(requests_of(["a00"]))
    step_until_done(engine, sequences)
    reasons = [s.output.finish_reason for s in sequences if s.output is not None]
    assert reasons == (["length"] * 3 if drain else ["cancelled", "length", "cancelled"])
    assert "a00" not in states(engine)
    del sequences
    gc.collect()
    assert old() is None
    engine.adapters.add("a00", many / "a00")
    assert engine.generate(requests_of(["a00"]))[0].finish_reason == "length"


def test_an_adapter_unloaded_before_its_request_started_is_that_requests_error_alone(many: Path):
    engine = engine_of(many)
    sequences = engine._sequences(requests_of(["a00", "a01"]))
    engine.adapters.remove("a00")
    engine._generator().submit(sequences)
    step_until_done(engine, sequences)
    assert "no adapter 'a00' any more" in str(sequences[0].error)
    assert sequences[1].output is not None


@pytest.mark.parametrize("after", [2, 7, 11])
def test_25_adapters_reloaded_while_requests_run_drop_none_and_mix_none(
    many: Path, wanted: dict[str, list[int]], after: int
):
    """Each becomes the next one's weights."""
    engine = engine_of(many, max_seqs=12)
    sequences = submitted(engine, requests_of(NAMES))
    step_while(engine, lambda: max(len(s.generated) for s in sequences) < after)
    for name, other in zip(NAMES, [*NAMES[1:], NAMES[0]]):
        engine.update(many / other, name)
    step_until_done(engine, sequences)
    others = engine_of(many)
    for name, other in zip(NAMES, [*NAMES[1:], NAMES[0]]):
        others.update(many / other, name)
    fresh = [o.token_ids for o in others.generate(requests_of(NAMES))]
    for sequence, name, new in zip(sequences, NAMES, fresh):
        assert sequence.output is not None
        assert sequence.output.token_ids == (new if sequence.output.version else wanted[name])
    assert {bool(s.output and s.output.version) for s in sequences} == {True, False}


def test_scores_and_vectors_load_what_they_need_and_keep_it(many: Path):
    engine, lm = engine_of(many), adapted(*NAMES)
    prompt, continuation = random_ids([6, 5])
    asked = [ScoreRequest(prompt, [continuation], adapter=name) for name in ("a03", "a04", "a03", NO_ADAPTER)]
    expected = Engine(lm).score(asked)
    assert [s[0].logprobs for s in engine.score(asked)] == [s[0].logprobs for s in expected]
    assert engine.adapters.stats()["loads"] == 2
    engine.score(asked)
    assert engine.embed([prompt], adapter="a03").shape == (1, 32)
    assert engine.adapters.stats()["loads"] == 2
    tight = engine_of(many, max_active=1)
    assert [s[0].logprobs for s in tight.score(asked)] == [s[0].logprobs for s in expected]
    assert tight.adapters.stats()["active"] == 1


def test_a_prefix_is_known_again_when_its_adapter_was_away(many: Path):
    engine = engine_of(many, max_active=1)
    prompt = random_ids([40])[0]
    for name in ("a00", "a01"):
        assert engine.generate([Request(prompt, GREEDY, adapter=name)])[0].usage.cached_tokens == 0
    assert engine.generate([Request(prompt, GREEDY, adapter="a00")])[0].usage.cached_tokens == 39


def test_what_adapters_keep_of_one_prompt_is_each_their_own_and_right(many: Path):
    """Three times the same prompt, from the cache the second time: the numbers are those without one."""
    engine = engine_of(many)
    prompt = random_ids([40])[0]
    requests = [Request(prompt, GREEDY, adapter=name) for name in ("a00", "a01", NO_ADAPTER)]
    first = engine.generate(requests)
    again = engine.generate(requests)
    assert [o.usage.cached_tokens for o in (*first, *again)] == [0, 0, 0, 39, 39, 39]
    assert [o.token_ids for o in again] == [o.token_ids for o in first]
    for one, other in zip(first, again):
        assert np.abs(np.subtract(one.logprobs, other.logprobs)).max() < 1e-5
    assert len({tuple(o.token_ids) for o in first}) == 3


def test_a_pinned_adapter_stays_and_pins_are_bounded(many: Path):
    cost = cost_of(many, "a00")
    engine = engine_of(many, max_bytes=2 * cost, cycle_time=0.0)
    engine.adapters.add("mine", many / "a00", pin=True)
    assert states(engine)["mine"] == "ready"
    engine.generate(requests_of(NAMES[:6]))
    assert states(engine)["mine"] == "ready"
    assert [s.pinned for s in engine.adapters.list() if s.state == "ready"].count(True) == 1
    engine.adapters.add("second", many / "a01", pin=True)
    for more in ({"pin": True}, {}):
        with pytest.raises(UserError, match="beside those that are pinned"):
            engine.adapters.add("third", many / "a02", **more)
    with pytest.raises(UserError, match="beside those that are pinned"):
        engine.generate(requests_of(["a05"]))


def test_what_leaves_an_accelerator_waits_in_the_hosts_memory(many: Path, monkeypatch: pytest.MonkeyPatch):
    """A device without memory stands for one."""
    reads: list[str] = []
    real = Directory.read

    def read(self: Directory, found: Any, name: str, base: Any, where: str) -> Any:
        reads.append(name)
        return real(self, found, name, base, where)

    monkeypatch.setattr(Directory, "read", read)
    wanted: list[str] = []
    arrived = threading.Event()
    engaged = Engaged(
        Turnstile(), wanted=lambda: wanted, in_use=lambda: (), forget=lambda adapter: None,
        cancel=lambda target: None, wake=arrived.set,
    )  # fmt: skip
    store = AdapterStore(AdapterConfig(roots=(many,), max_active=1, cycle_time=0.0, host_bytes="1MiB"), engaged)
    store.aim(Base(lm_of().model.to("meta"), "tiny"), {})

    def load(name: str) -> None:
        wanted[:] = [name]
        store.ask(name, "")
        while store.admit(name) is None:
            arrived.clear()
            store.exchange()
            if store.admit(name) is None:
                assert arrived.wait(30)
        wanted.clear()

    load("a00")
    adapter = store.loaded("a00")
    assert adapter is not None
    assert {t.device.type for layer in adapter.layers.values() for t in layer.tensors.values()} == {"meta"}
    load("a01")
    kept = {s.id: s.state for s in store.list() if s.state != "disk"}
    assert kept == {"a00": "host", "a01": "ready"}
    load("a00")
    assert reads == ["a00", "a01"]


def test_who_asked_before_an_error_and_comes_after_it_was_told_hears_it_too(tmp_path: Path):
    folder = folder_of(tmp_path, adapted("a"))
    (folder / "a" / "adapter_model.safetensors").write_bytes(b"")
    engine = engine_of(folder)
    late = engine._sequences(requests_of(["a"]))
    with pytest.raises(UserError, match="damaged"):
        engine.generate(requests_of(["a"]))
    engine._generator().submit(late)
    step_until_done(engine, late)
    assert "damaged" in str(late[0].error)


def test_names_behind_which_there_was_nothing_are_not_listed_and_forgotten_in_time(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **options: Any) -> Path:
        raise UserError("the hub cannot be reached")

    monkeypatch.setattr("maypole.engine.adapter_sources.fetched", unreachable)
    monkeypatch.setattr("maypole.engine.adapter_store.STRANGE", 3)
    engine = engine_of(hub=True)
    sequences = submitted(engine, requests_of([f"own/er{i}" for i in range(9)]))
    step_until_done(engine, sequences)
    assert all("cannot be reached" in str(s.error) for s in sequences)
    assert list(engine.adapters) == []
    assert "own/er1" not in engine.adapters
    assert len(engine.adapters._entries) == 3
