"""A program from a file, run whole: its results, and what each of its calls cost. Knows nothing about commands.

A program is Python with semantic functions and a `main` that calls them and returns variables, alone or in lists and
mappings. It runs where it is started; only its calls go elsewhere.
"""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maypole.core.errors import UserError
from maypole.core.identity import digest
from maypole.serve.parrot.calls import Criteria
from maypole.serve.parrot.client import Session, Variable


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call up to one output: what it was run for, where, its tokens, and its seconds from ready to done."""

    function: str
    output: str
    state: str
    objective: str
    engine: str
    prompt: int
    reused: int
    said: int
    waited: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What `main` returned, with values for variables, and what it took."""

    outputs: Any
    calls: tuple[CallReport, ...]
    computed_tokens: int
    reused_tokens: int
    said_tokens: int
    seconds: float
    graph: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything but the graph's nodes, which the calls tell."""
        names = [name for name in self.__dataclass_fields__ if name != "graph"]
        return {name: getattr(self, name) for name in names}


def run_program(
    main: Callable[..., Any], session: Session, arguments: Mapping[str, str] | None = None,
    *, criteria: Criteria = "latency",
) -> ProgramResult:  # fmt: skip
    """Run `main(**arguments)`, a function or a coroutine function, in `session`, and wait for what it returns."""
    given = dict(arguments or {})
    try:
        inspect.signature(main).bind(**given)
    except TypeError as error:
        raise UserError(str(error), "main", f"arguments: {', '.join(inspect.signature(main).parameters)}") from error
    with session:
        if inspect.iscoroutinefunction(main):
            returned = asyncio.run(main(**given))
        else:
            returned = main(**given)
        variables = list(_variables(returned))
        values = dict(zip(variables, session.gather(variables, criteria)))
        graph = session.explain()
    totals = graph["totals"]
    return ProgramResult(
        _filled(returned, values), tuple(_report(node, graph) for node in graph["nodes"]), totals["computed_tokens"],
        totals["reused_tokens"], totals["said_tokens"], round(totals["seconds"], 3), graph,
    )  # fmt: skip


def load_program(file: Path) -> Callable[..., Any]:
    """The `main` of a Python file."""
    if not file.is_file():
        raise UserError("no such file", str(file), "a Python file with a function main")
    name = f"maypole_program_{digest(str(file.resolve()))}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise UserError("not a Python file", str(file), "a file whose name ends in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where its functions look for their own annotations
    try:
        found.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the file raised {type(error).__name__}: {error}", str(file)) from error
    main = getattr(module, "main", None)
    if not callable(main):
        raise UserError("has no function main", str(file), "def main(...): ... return the variables that are wanted")
    return main


def _variables(returned: Any) -> "dict[Variable, None]":
    """Every variable in what was returned."""
    if isinstance(returned, Variable):
        return {returned: None}
    items = returned.values() if isinstance(returned, dict) else returned if isinstance(returned, list | tuple) else ()
    return {variable: None for item in items for variable in _variables(item)}


def _filled(returned: Any, values: Mapping[Variable, Any]) -> Any:
    if isinstance(returned, Variable):
        return values[returned]
    if isinstance(returned, dict):
        return {name: _filled(item, values) for name, item in returned.items()}
    return [_filled(item, values) for item in returned] if isinstance(returned, list | tuple) else returned


def _report(node: Mapping[str, Any], graph: Mapping[str, Any]) -> CallReport:
    seconds, tokens = node["seconds"], node["tokens"]
    name = next(edge["name"] for edge in graph["edges"] if edge["id"] == node["output"])
    ready, placed, ended = seconds["ready"], seconds["placed"], seconds["ended"]
    return CallReport(
        node["function"], name, node["state"], node["objective"], node["engine"], tokens["prompt"], tokens["reused"],
        tokens["said"], round(placed - ready, 4) if placed and ready else None,
        round(ended - ready, 4) if ended and ready else None,
    )  # fmt: skip
