"""What a stage's page is made from: what was asked, how far each stage is, and what its manifest says of its origin.

Knows nothing about any stage's work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.tour.options import TourOptions
from maypole.tour.plan import Plan
from maypole.tour.report.model import StageState
from maypole.tour.stages import BY_NAME


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known before the first stage."""

    options: TourOptions
    model: str
    own: bool
    corpus: str
    plan: Plan

    @property
    def tuned(self) -> Path:
        """Where the trained model lies when all is done."""
        return self.options.out / BY_NAME["align" if self.plan.align.rounds else "adapt"].directory


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage stands; `artifact` once it is done, `saved` what a stopped one goes on from."""

    state: StageState
    artifact: Artifact | None = None
    reused: bool = False
    saved: str = ""
    error: str = ""
    log: Sequence[str] = ()

    @property
    def finding(self) -> str:
        """What there is to say before it is done."""
        return f"It goes on after {self.saved}, which is saved." if self.saved else ""


def common(stage: Progress) -> dict[str, Any]:
    """The fields of a page that every stage has."""
    manifest = stage.artifact.manifest if stage.artifact is not None else {}
    return {
        "state": stage.state,
        "seconds": manifest.get("wall_seconds"),
        "error": stage.error,
        "log": stage.log,
        "provenance": provenance(manifest, stage.reused) if manifest else (),
    }


def provenance(manifest: Mapping[str, Any], reused: bool) -> list[tuple[str, str]]:
    """Pairs in the order shown; no user, host or absolute path."""
    facts = [("plan", ", ".join(f"{name} {value}" for name, value in manifest["config"].items()))]
    for name, entry in manifest["inputs"].items():
        facts.append((f"input {name}", " ".join(str(entry[key]) for key in ("path", "identity") if entry.get(key))))
    facts += [("seed", str(manifest["seed"])), ("key", manifest["key"])]
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items())))]
    facts += [
        ("device", manifest["metrics"].get("device", "cpu")),
        ("seconds", f"{manifest['wall_seconds']:.1f} wall, {manifest['cpu_seconds']:.1f} CPU"),
        ("peak memory", f"{manifest['peak_rss_bytes'] / 1e6:,.0f} MB"),
        ("this time", "found finished" if reused else "computed"),
    ]
    return facts
