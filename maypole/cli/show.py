"""What a verb returned, as a table for people or as one JSON document. Knows nothing about any verb.

Text from models and files is shown as it is, never read as markup, with control characters made visible.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maypole.core.artifact import Artifact
from maypole.core.config import DryRun
from maypole.core.errors import UserError


def show(result: object, *, as_json: bool) -> None:
    """Print `result` on stdout: an artifact's path and metrics, a report's numbers; nothing for None."""
    if as_json:
        print(json.dumps(document(result), indent=2, ensure_ascii=False))
    elif result is not None:
        console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        for part in _parts(result):
            console.print(part)


def exit_code(result: object) -> int:
    """1 for a result that ran and missed its aim (`holds` is False, or its own `exit_code`), else 0."""
    code = getattr(result, "exit_code", None)
    if isinstance(code, int):
        return code
    return 1 if getattr(result, "holds", None) is False else 0


def error_document(error: BaseException, code: int) -> dict[str, Any]:
    """An error as ``--json`` shows it."""
    said = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    if isinstance(error, UserError):
        said |= {"what": error.what, "where": error.where, "expected": error.expected}
    return {"error": said}


def document(result: object) -> Any:
    """`result` as JSON can hold it."""
    if isinstance(result, Artifact):
        return {"path": str(result.out), **{n: result.manifest[n] for n in ("kind", "key", "metrics")}}
    if hasattr(result, "to_json"):
        return document(result.to_json())  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {f.name: document(getattr(result, f.name)) for f in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return {str(k): document(v) for k, v in result.items()}
    if isinstance(result, list | tuple | set | frozenset):
        return [document(v) for v in result]
    if hasattr(result, "tolist"):
        return document(result.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(result, float):
        return result if result == result and abs(result) != float("inf") else None
    return result if result is None or isinstance(result, str | int | bool) else str(result)


def _parts(result: object) -> list[Any]:
    if hasattr(result, "__rich__") or hasattr(result, "__rich_console__"):
        return [result]
    if isinstance(result, Artifact):
        return [_pairs(result.manifest["metrics"]), Text.assemble(("result", "bold"), "  ", clean(str(result.out)))]
    if isinstance(result, str):
        return [Text(clean(result))]
    plain = document(result)
    if isinstance(plain, list):
        return [_rows(plain)]
    if not isinstance(plain, dict):
        return [Text(clean(str(plain)))]
    if isinstance(result, DryRun):
        plain = {name: value for name, value in plain.items() if value not in (None, [], {})}
        if not plain:
            return [Text("nothing stands in the way")]
    tables = {k: v for k, v in plain.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    numbers = {k: v for k, v in plain.items() if k not in tables}
    parts: list[Any] = [_pairs(numbers)] if numbers else []
    for name, rows in tables.items():
        parts += [Text(("\n" if parts else "") + clean(name), style="bold"), _rows(rows)]
    return parts


def _pairs(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        table.add_row(Text(clean(name)), _cell(value))
    return table


def _rows(rows: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    if not rows or not isinstance(rows[0], dict):
        for value in rows:
            table.add_row(_cell(value))
        return table
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numbers = all(isinstance(r.get(name), int | float) and not isinstance(r.get(name), bool) for r in rows)
        table.add_column(Text(clean(name)), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, dict):
        return Text(", ".join(f"{clean(str(k))} {_cell(v)}" for k, v in value.items()) or "-")
    if isinstance(value, list):
        return Text(", ".join(str(_cell(v)) for v in value) or "-")
    return Text(clean(str(value)))


def clean(text: str) -> str:
    """`text` with control and direction characters as codes: they could move the cursor or hide words."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
