"""What a tour is told. Knows nothing about torch: command lines import it."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from maypole.core.config import setting
from maypole.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TourOptions:
    """What to improve, on which texts, in how many minutes."""

    model: str | None = setting(None, input=True, help="model directory or hub id; default: a small base that ships")
    corpus: Path | None = setting(None, input=True, help="file or folder of text; default: Python's documentation")
    out: Path = setting(Path("run"), key=False, help="directory of the report and all results")
    minutes: float = setting(6.0, help="about how long it may take on this machine")
    seed: int = setting(0, help="everything random is derived from it")
    own_data_only: bool = setting(False, help="leave out what needs maypole's own small world")
    threads: int | None = setting(None, key=False, help="CPU threads; default: all cores, 1 for the base that ships")

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise ConfigError("minutes", self.minutes, "above 0")
        if self.threads is not None and self.threads < 1:
            raise ConfigError("threads", self.threads, "1 or more")

    @property
    def command(self) -> str:
        """The command line that starts or continues this tour; what has its default is left out."""
        words = ["maypole", "tour"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "out" or value != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)
