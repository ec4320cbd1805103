"""Ours and a peer side by side: one process per arm, taking turns, one table, one JSON document, one exit code.

An arm is a dict of settings; the script's own `measure` turns it into a `Measured` in a process of its own, so that
neither side inherits the other's threads, memory or warm caches; work that a GPU does is measured in this process. Of
several settings of the peer the fastest in a first round is the one that is compared. Knows nothing about what is
measured.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from maypole.core.manifest import versions

Arm = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one arm did: `amount` of work in so many seconds, and numbers that must be the same on both sides."""

    amount: float
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    check: dict[str, float] = field(default_factory=dict)
    computed_tokens: int = 0


CURVE = 64
"""As many numbers of a check stand in the document, losses step by step; more would be tokens."""
PER = {"cpu": "cpu second", "wall": "wall second", "tokens": "token computed"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `clock` says which seconds the rate and the ratio are made of, or that it is computed tokens.

    `check` is merged into the settings of both arms for a first, unmeasured run, whose `Measured.check` must agree to
    the relative `tolerance`; None: the first measured runs are compared. `rounds` pairs follow it. `target` is the
    least ratio, `at_most` the highest (where the gain must shrink), `most_bytes` our highest peak of memory. A case
    that `needs` a package which is not installed is skipped, and says so.
    """

    name: str
    ours: Arm
    peers: Mapping[str, Arm]
    unit: str
    check: Arm | None
    tolerance: float
    scout: Arm = field(default_factory=dict)
    clock: str = "cpu"
    threads: int = 1
    rounds: int = 3
    target: float | None = None
    at_most: float | None = None
    most_bytes: int | None = None
    needs: Sequence[str] = ()

    @property
    def missing(self) -> str:
        """Why it cannot run here, "" where it can."""
        lacking = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"{', '.join(lacking)} is not installed (make setup-bench)" if lacking else ""


def main(
    name: str,
    cases: Callable[[bool], Sequence[Case]],
    measure: Callable[[Arm], Measured],
    *peers: str,
    gpu: str = "",
    here: bool = False,
) -> None:
    """The script's whole command line; `cases(quick)` says what is compared, `peers` are the packages compared with.

    `measure` runs in this process where it is about servers, which have theirs (`here`), or with the name of a `gpu`.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases, rounds and steps")
    parser.add_argument("--only", metavar="TEXT", default="", help="the cases whose name has TEXT in it")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        settings = json.loads(options.arm)
        Path(settings.pop("report")).write_text(json.dumps(asdict(measure(settings))))
        return
    chosen = [case for case in cases(options.quick) if options.only in case.name]
    if not chosen:
        parser.error(f"no case has {options.only!r} in its name: {'; '.join(c.name for c in cases(options.quick))}")
    run = functools.partial(_here, measure) if gpu or here else _apart
    found = [_compare(case, run) for case in chosen if not case.missing]
    document = {
        "name": name,
        "cases": found,
        "skipped": {case.name: case.missing for case in chosen if case.missing},
        "machine": _machine() | ({"gpu": gpu} if gpu else {}),
        "versions": {**versions(), **{peer: version for peer in peers if (version := _version(peer))}},
    }
    _show(document)
    if options.json:
        print(json.dumps(document, indent=2))
    sys.exit(0 if all(case["equal"] and case["met"] is not False for case in found) else 1)


def _compare(case: Case, run: Callable[[Case, Arm], Measured]) -> dict[str, Any]:
    def measured(label: str, arm: Arm) -> Measured:
        found = run(case, arm)
        print(f"{case.name}: {label}: {_rate(case, found):,.0f} {case.unit} per {PER[case.clock]}", file=sys.stderr)
        return found

    rates = {}
    if len(case.peers) > 1:
        rates = {n: _rate(case, measured(n, {**arm, **case.scout})) for n, arm in case.peers.items()}
    best = max(rates, key=lambda n: rates[n]) if rates else next(iter(case.peers))
    arms = {"ours": case.ours, best: case.peers[best]}
    checks = []
    if case.check is not None:
        checks = [measured(f"{name}, check", {**arm, **case.check}).check for name, arm in arms.items()]
    runs: dict[str, list[Measured]] = {name: [] for name in arms}
    for _ in range(case.rounds):
        for name, arm in arms.items():
            runs[name].append(measured(name, arm))
    first = [found[0].check for found in runs.values()]
    checks = checks or first
    apart = max(abs(checks[0].get(k, math.inf) - v) / max(abs(v), 1e-12) for k, v in checks[1].items())
    equal = checks[0].keys() == checks[1].keys() and apart <= case.tolerance
    ours, theirs = (statistics.median(_rate(case, r) for r in found) for found in runs.values())
    ratio = ours / theirs
    sides = dict(zip(("ours", "peer"), runs.values()))
    memory = {side: max(r.peak_rss_bytes for r in found) for side, found in sides.items()}
    limits = [] if case.target is None else [ratio >= case.target]
    limits += [] if case.at_most is None else [ratio <= case.at_most]
    limits += [] if case.most_bytes is None else [memory["ours"] <= case.most_bytes]
    return {
        "case": case.name,
        "ours": round(ours, 1),
        "peer": round(theirs, 1),
        "peer_name": best,
        "unit": f"{case.unit} per {PER[case.clock]}",
        "ratio": round(ratio, 3),
        "target": case.target,
        "at_most": case.at_most,
        "most_bytes": case.most_bytes,
        "met": all(limits) if limits else None,
        "equal": equal,
        "apart": apart,
        "tolerance": case.tolerance,
        "checked": dict(zip(("ours", "peer"), checks)) if len(checks[0]) <= CURVE else None,
        "agreement": _agreement(first[0], first[1], case.tolerance),
        "threads": case.threads,
        "peer_settings": {n: round(rate, 1) for n, rate in rates.items()},
        "peak_rss_bytes": memory,
        "runs": {side: [{**asdict(r), "check": None} for r in found] for side, found in sides.items()},
    }


def _agreement(ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float) -> float | None:
    """The share of the peer's numbers that are ours too in the runs that were measured; None where these have none."""
    same = [abs(ours.get(k, math.inf) - v) <= tolerance * max(abs(v), 1e-12) for k, v in theirs.items()]
    return round(sum(same) / len(same), 4) if same else None


def _rate(case: Case, run: Measured) -> float:
    return run.amount / {"cpu": run.cpu_seconds, "wall": run.wall_seconds, "tokens": run.computed_tokens}[case.clock]


def _here(measure: Callable[[Arm], Measured], case: Case, arm: Arm) -> Measured:
    return measure(arm)


def _apart(case: Case, arm: Arm) -> Measured:
    """One arm in a process of its own, with its own cache and without a network."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        quiet = {"OMP_NUM_THREADS": str(case.threads), "HF_HUB_OFFLINE": "1", "MAYPOLE_CACHE": folder}
        words = [sys.executable, sys.argv[0], "--arm", json.dumps({**arm, "report": str(report)})]
        ran = subprocess.run(words, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(f"{case.name}, {arm}: the process failed\n{ran.stderr[-4000:]}")
        return Measured(**json.loads(report.read_text()))


def _show(document: Mapping[str, Any]) -> None:
    table = Table(
        "case", "ours", "peer", "unit", "ratio", "target", "same work", "agree", "GB ours/peer", "peer's best", box=None
    )  # fmt: skip
    for case in document["cases"]:
        wanted = [] if case["target"] is None else [f"{case['target']:g}"]
        wanted += [] if case["at_most"] is None else [f"at most {case['at_most']:g}"]
        wanted += [] if case["most_bytes"] is None else [f"{case['most_bytes'] / 1e9:g} GB"]
        verdict = f"{', '.join(wanted)} {'met' if case['met'] else 'MISSED'}" if wanted else ""
        memory = "/".join(f"{b / 1e9:.2f}" for b in case["peak_rss_bytes"].values())
        same = f"{'yes' if case['equal'] else 'NO'} ({case['apart']:.0e})"
        table.add_row(
            case["case"], f"{case['ours']:,.0f}", f"{case['peer']:,.0f}", case["unit"], f"{case['ratio']:.2f}", verdict,
            same, "-" if case["agreement"] is None else f"{case['agreement']:.1%}", memory, case["peer_name"],
        )  # fmt: skip
    for name, reason in document["skipped"].items():
        table.add_row(name, "skipped:", reason)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)
    console.print(table)
    machine = document["machine"]
    console.print(f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, load {machine['load']}")
    if machine["load"] > machine["cores"]:
        console.print("The machine was busy with other work: these ratios are not to be quoted.")


def _machine() -> dict[str, Any]:
    """What the numbers depend on; no name of a host or a user."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "load": round(os.getloadavg()[1], 2)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
