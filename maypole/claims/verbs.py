"""The command that checks claims. Knows nothing about what they measure."""

import pkgutil
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from maypole import catalogue, claims
from maypole.claims.runner import RESULT, ClaimResult, run_claim
from maypole.core.config import setting
from maypole.core.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class ClaimOptions:
    """How claims are checked."""

    seeds: str = setting("3", help="how many seeds, or which: 7,11,13")
    out: Path | None = setting(None, help="directory of the result; default: claims/ID")
    all: bool = setting(False, help="check every claim that is written")
    results: Path | None = setting(None, help="also copy each verdict to DIR/ID.json")

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of several claims; holds if all do."""

    claims: tuple[ClaimResult, ...]

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims)

    def to_json(self) -> Any:
        """One claim is its own document, several are a list."""
        return self.claims[0].to_json() if len(self.claims) == 1 else [c.to_json() for c in self.claims]

    def __rich__(self) -> Any:
        from maypole.claims.table import table

        return table(self.claims)


def claim(
    *ids: Annotated[str, Parameter(name="ID", help="systems (see maypole systems), or ID/PART for a part of a claim")],
    config: ClaimOptions | None = None,
) -> Verdicts:
    """Check a system's claim: run its experiment and compare with the paper.

    Each seed runs in a process of its own; seeds already measured are kept, so the same command continues. A seed that
    was cut off goes on from what it had done, but where seconds are measured it begins anew.
    Exit code 1 means that a claim does not hold.

        maypole claim sppo
        maypole claim lora-land/serving --seeds 7,11,13 --out results
    """
    options = config or ClaimOptions()
    names = list(ids) or (written() if options.all else [])
    if not names:
        raise UserError("no claim named", expected="maypole claim ID, or --all")
    results = []
    for name in names:
        folder = options.out or Path("claims")
        out = folder if options.out and len(names) == 1 else folder / name
        results.append(run_claim(name, seeds=parse_seeds(options.seeds), out=out))
        if options.results:
            target = options.results / f"{name}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / RESULT, target)
    return Verdicts(tuple(results))


def written() -> list[str]:
    """Ids whose claim file exists, in the catalogue's order."""
    modules = {m.name for m in pkgutil.iter_modules(claims.__path__)}
    return [s.id for s in catalogue.SYSTEMS if s.id.replace("-", "_") in modules]


def parse_seeds(text: str) -> list[int]:
    """``"3"`` -> [0, 1, 2]; ``"7,11,13"`` -> those; ``"7,"`` -> [7]."""
    accepted = "a number of seeds, or seeds separated by commas: 7,11,13"
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError("seeds", text, accepted) from error
    if "," not in text and found:
        found = list(range(found[0]))
    if not found or min(found) < 0 or len(set(found)) != len(found):
        raise ConfigError("seeds", text, accepted)
    return found
