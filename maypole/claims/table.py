"""Verdicts as a table for people. Knows nothing about how they came about."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from maypole.claims.runner import ClaimResult

COLUMNS = ("effect", "metric", "ours", "baseline", "measured", "95 % interval", "needed", "")


def table(claims: Sequence[ClaimResult]) -> Group:
    """One table a claim: each effect, what it had to reach, and whether it did."""
    parts: list[Any] = []
    for claim in claims:
        verdict = ("holds", "bold green") if claim.holds else ("does not hold", "bold red")
        parts += [Text.assemble((claim.id, "bold"), "  ", verdict, f"  {claim.seconds:.0f} s"), Text(claim.statement)]
        rows = Table(box=None, pad_edge=False)
        for name in COLUMNS:
            rows.add_column(name)
        for effect in claim.effects:
            rows.add_row(*(Text(cell) for cell in cells(effect)))
        parts.append(rows)
        parts += [Text(f"failed: {where}: {why}", style="red") for where, why in claim.errors.items()]
        parts += [Text(f"not written yet: {part}") for part in claim.missing]
    return Group(*parts)


def cells(effect: dict[str, Any]) -> tuple[str, ...]:
    """`COLUMNS` of one effect; of several seeds the mean."""
    interval = effect["ci95"]
    return (
        effect["name"] + (" (control)" if effect["control"] else ""),
        effect["metric"],
        _mean(effect["ours"]),
        _mean(effect["baseline"]) if effect["baseline"] is not None else "-",
        f"{effect['difference']:.4g}",
        f"[{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "-",
        f"{effect['rule']} {effect['threshold']:.4g}",
        "ok" if effect["holds"] else "MISSED",
    )


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4g}"
