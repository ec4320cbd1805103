"""Stored results as tables: claims from docs/results/claims, benchmarks from benchmarks/results. Measures nothing."""

import json
from pathlib import Path
from typing import Any

from maypole import catalogue
from maypole.claims.table import COLUMNS, cells
from rendering.tables import table

ROOT = Path(__file__).parent.parent.parent
CLAIMS = ROOT / "docs" / "results" / "claims"


def claims() -> str:
    """Every stored claim: which hold, then each with all its effects."""
    found = [(s, id) for s in catalogue.SYSTEMS for id in _ids(s.id)]
    if not found:
        return "No result is stored yet."
    rows = [(f"[{_title(s, id)}](#{id.replace('/', '')})", *_summary(_stored(id))) for s, id in found]
    parts = [table(("system", "verdict", "effects that hold", "seeds", "minutes"), rows), ""]
    for s, id in found:
        page = f" ([{s.title}](systems/{s.id}.md))" if s.built or s.partly else ""
        parts += [f"## {id}", "", f"`maypole claim {id}`{page}", "", claim(id), ""]
    return "\n".join(parts).rstrip()


def _ids(id: str) -> list[str]:
    """The stored claims of a system: the whole, or parts of it."""
    files = [CLAIMS / f"{id}.json", *sorted((CLAIMS / id).glob("*.json"))]
    return [file.relative_to(CLAIMS).with_suffix("").as_posix() for file in files if file.is_file()]


def _title(system: catalogue.System, id: str) -> str:
    return f"{system.title}: {id.partition('/')[2]}" if "/" in id else system.title


def claim(id: str) -> str:
    """The statement, verdict and effects of one claim, or of a part of one."""
    if not (CLAIMS / f"{id}.json").is_file():
        return f"No result is stored yet; `maypole claim {id}` measures it."
    found = _stored(id)
    verdict, effects, seeds, minutes = _summary(found)
    rows = [cells(effect) for effect in found["effects"]]
    failed = [f"- failed: {where}: {why}" for where, why in found.get("errors", {}).items()]
    missing = [f"- not written yet: {part}" for part in found.get("missing", ())]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    said = f"**{verdict[0].upper()}{verdict[1:]}**: {effects} effects, seeds {seeds}, {minutes} minutes; {versions}."
    parts = [found["statement"], said, table(COLUMNS, rows, right=("ours", "baseline", "measured"))]
    return "\n\n".join([*parts, *(["\n".join(failed + missing)] if failed or missing else [])])


def benchmarks() -> str:
    """A table for each stored benchmark."""
    parts = []
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        machine = found["machine"].get("gpu") or f"{found['machine']['cpu']}, {found['machine']['cores']} cores"
        names = ["case", "ours", "peer", "unit", "ratio", "target"]
        memory = all("peak_rss_bytes" in case for case in found["cases"])
        names += ["GB ours / peer"] if memory else []
        rows = [_case(case)[: len(names)] for case in found["cases"]]
        agreements = [case.get("agreement") for case in found["cases"]]
        if any(share is not None and share < 1 for share in agreements):
            names.append("tokens that agree")
            rows = [(*row, "" if share is None else f"{share:.1%}") for row, share in zip(rows, agreements)]
        numbers = [name for name in names if name not in ("case", "peer", "unit")]
        where = f"`python benchmarks/{found['name']}.py` on {machine}{_busy(found['machine'])}."
        parts += [f"## {found['name']}", "", where, ""]
        parts += [table(names, rows, right=numbers), ""]
        skipped = [f"- not run: {name}: {reason}" for name, reason in found.get("skipped", {}).items()]
        parts += [*skipped, ""] if skipped else []
    return "\n".join(parts).rstrip()


def _busy(machine: dict[str, Any]) -> str:
    """The load, where it was more than the cores: other work ran too, or servers and clients of its own."""
    load, cores = machine.get("load", 0.0), machine.get("cores") or 1
    return f", at a load of {load:.2g}" if load > cores else ""


def _case(case: dict[str, Any]) -> tuple[str, ...]:
    memory = " / ".join(f"{size / 1e9:.2f}" for size in case.get("peak_rss_bytes", {}).values())
    wanted = [] if case["target"] is None else [f"{case['target']:.3g}"]
    wanted += [f"at most {case['at_most']:g}"] if case.get("at_most") else []
    wanted += [f"{case['most_bytes'] / 1e9:g} GB"] if case.get("most_bytes") else []
    target = ", ".join(wanted) + (" (missed)" if wanted and not case["met"] else "")
    peer = f"{_number(case['peer'])} ({case['peer_name']})"
    return case["case"], _number(case["ours"]), peer, case["unit"], f"{case['ratio']:.2f}", target, memory


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _stored(id: str) -> dict[str, Any]:
    return json.loads((CLAIMS / f"{id}.json").read_text())


def _summary(found: dict[str, Any]) -> tuple[str, ...]:
    held = sum(effect["holds"] for effect in found["effects"])
    seeds = ", ".join(map(str, found["seeds"]))
    verdict = "holds" if found["holds"] else "does not hold"
    return verdict, f"{held} of {len(found['effects'])}", seeds, f"{found['seconds'] / 60:.0f}"
