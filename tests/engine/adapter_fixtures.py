"""Folders of adapters of the tiny model, and engines that take them from there."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maypole.engine import AdapterConfig, Engine, EngineConfig, Request, Sampling
from maypole.engine.adapter_sources import Directory
from maypole.engine.sequence import Sequence as Running
from maypole.models.language_model import LanguageModel
from tests.engine.engine_fixtures import lm_of, with_adapters

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)


def folder_of(path: Path, lm: LanguageModel, *names: str) -> Path:
    """`path` with the adapters of `lm`, each a directory of its name."""
    model: Any = lm.model
    model.save_pretrained(str(path), selected_adapters=list(names or lm.adapters))
    return path


def adapted(*names: str) -> LanguageModel:
    """The tiny model with adapters."""
    return with_adapters(lm_of(), *names)


def engine_of(*roots: Path, max_seqs: int = 64, **adapters: Any) -> Engine:
    """An engine of the tiny base whose adapters come from `roots`."""
    return Engine(lm_of(), EngineConfig(max_seqs=max_seqs, adapters=AdapterConfig(roots=roots, **adapters)))


def bytes_changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """What spoils the weights' file of an adapter's directory."""

    def changed(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return changed


def cost_of(folder: Path, name: str) -> int:
    """What an adapter needs while it takes part in batches."""
    engine = engine_of(folder)
    engine.generate([Request([5], GREEDY, adapter=name)])
    return engine.adapters._places.exchange.cost


def submitted(engine: Engine, requests: Sequence[Request]) -> list[Running]:
    """The sequences of `requests`, in the queue."""
    sequences = engine._sequences(requests)
    engine._generator().submit(sequences)
    return sequences


def step_while(engine: Engine, true: Callable[[], bool]) -> None:
    """Step by step, resting where there is nothing to do."""
    while true():
        heard = engine._bell.count
        if not engine._step():
            engine._bell.rest(heard)


def step_until_done(engine: Engine, sequences: Sequence[Running]) -> None:
    """As long as one of `sequences` is not done."""
    step_while(engine, lambda: not all(s.done for s in sequences))


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[threading.Event]:
    """The adapter `name` is not read before the event is set."""
    go, read = threading.Event(), Directory.read

    def slow(self: Directory, found: Any, called: str, base: Any, where: str) -> Any:
        if called == name:
            assert go.wait(30)
        return read(self, found, called, base, where)

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "read", slow)
        try:
            yield go
        finally:
            go.set()
