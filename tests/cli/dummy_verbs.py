"""Verbs that tests register: one of each kind of result and of each way to fail."""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun, ModelOptions, RunOptions, pass_on, required, setting
from maypole.core.errors import ConfigError, DataError
from maypole.core.progress import track


@dataclass(frozen=True, kw_only=True)
class Peft:
    type: str = setting("lora")
    r: int = setting(8)
    options: dict[str, Any] = setting(factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    learning_rate: float = setting(1e-3)
    peft: Peft | None = setting(None)


@dataclass(frozen=True, kw_only=True)
class Sft(TrainOptions, ModelOptions, RunOptions):
    data: tuple[str, ...] = setting(input=True, help="rows to learn from")
    mix: tuple[float, ...] = setting(())
    fail: str = setting("", key=False)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError("learning_rate", self.learning_rate, "a number above 0")
        pass_on(Sft, self)


@dataclass(frozen=True)
class Report:
    name: str
    score: float
    rows: tuple[dict, ...]
    holds: bool = True


def sft(config: Sft) -> Artifact | DryRun:
    """Fine-tune on conversations.

    Longer words.
    """
    required(config, "out")
    if config.dry_run:
        return DryRun(rows_kept=2, rows_dropped={"too long": 1}, steps=7)
    assert config.out is not None
    with Artifact.open(config.out, kind="demo", config=config, seed=config.seed, force=config.force) as artifact:
        if artifact.finished:
            return artifact
        with track("train", 2, "steps") as step:
            step(1)
            if config.fail == "data":
                raise DataError("expected a string, found null", file="a.jsonl", row=2, field="text", expected="fix it")
            if config.fail == "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            if config.fail == "big":
                (artifact.path / "big.bin").write_bytes(bytes(1 << 20))
            if config.fail == "memory":
                raise MemoryError
            if config.fail == "interrupt":
                raise KeyboardInterrupt
            if config.fail:
                raise RuntimeError("broken [red]inside\x1b[31m")
            step(1)
        (artifact.path / "seen.txt").write_text(repr((config.data, config.mix, config.peft)))
        return artifact.finish({"loss": 1.5})


def measure(*, aim: float = 0.5, name: str = "n") -> Report:
    """Measure something."""
    return Report(name, 0.75, ({"item": "a", "value": 1},), holds=aim <= 0.75)


def start(model: str, /, *, port: int = 8000) -> dict:
    """Serve a model."""
    return {"model": model, "port": port, "where": str(Path(model).name)}


TABLE = {
    ("train", "sft"): ("tests.cli.dummy_verbs:sft", "Fine-tune on conversations."),
    ("evaluate", "tasks"): ("tests.cli.dummy_verbs:measure", "Measure something."),
    ("serve",): ("tests.cli.dummy_verbs:start", "Serve a model."),
    ("env",): ("maypole.cli.about:env", "Print versions for a bug report."),
}
