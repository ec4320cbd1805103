"""A session's graph as documents: what a page, a log or a person is shown of it. Knows nothing about who looks.

Nodes are tasks, edges variables; contents are never shown here. Also GraphViz's language.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from maypole.serve.parrot.graph import Task, Variable


def node(task: Task) -> dict[str, Any]:
    """One semantic call up to one output."""
    times = task.times
    return {
        "id": task.id, "function": task.call.name, "output": task.output.id, "state": task.state,
        "column": task.depth - 1, "objective": task.objective.name.lower(), "engine": task.host,
        "waits_for": [v.name for v in task.sources if not v.done] if task.state == "waiting" else [],
        "error": task.output.error.cause if task.output.error else None,
        "tokens": {"prompt": task.prompt_tokens, "reused": task.cached_tokens, "said": task.said_tokens},
        "seconds": {
            "submitted": times.submitted, "ready": times.ready, "placed": times.placed, "first_token": times.first,
            "ended": times.ended,
        },
    }  # fmt: skip


def edge(variable: Variable) -> dict[str, Any]:
    """A variable from its producer, if it has one, to its consumers."""
    return {
        "id": variable.id, "name": variable.name, "from": variable.producer.id if variable.producer else None,
        "to": [task.id for task in variable.consumers], "set": variable.content is not None,
        "error": variable.error.cause if variable.error else None,
    }  # fmt: skip


def totals(tasks: Iterable[Task]) -> dict[str, Any]:
    """Of a whole session: tokens that were computed and reused, seconds from the first submission to the last end."""
    tasks = list(tasks)
    ends = [t.times.ended for t in tasks if t.times.ended is not None]
    prompt, reused = sum(t.prompt_tokens for t in tasks), sum(t.cached_tokens for t in tasks)
    return {
        "tasks": len(tasks), "done": sum(t.state == "done" for t in tasks),
        "failed": sum(t.state == "failed" for t in tasks), "computed_tokens": prompt - reused, "reused_tokens": reused,
        "said_tokens": sum(t.said_tokens for t in tasks),
        "seconds": max(ends) - min(t.times.submitted for t in tasks) if ends else 0.0,
    }  # fmt: skip


def dot(graph: Mapping[str, Any]) -> str:
    """A snapshot for GraphViz: boxes are calls, arrows variables."""
    lines = ["digraph program {", "  rankdir=LR; node [shape=box];"]
    for task in graph["nodes"]:
        label = f"{task['function']} {task['objective']}"
        lines.append(f"  {_quoted(task['id'])} [label={_quoted(label)}];")
    for variable in graph["edges"]:
        if variable["from"] is None:
            lines.append(f"  {_quoted(variable['id'])} [label={_quoted(variable['name'])}, shape=plaintext];")
        for task in variable["to"]:
            source = variable["from"] or variable["id"]
            lines.append(f"  {_quoted(source)} -> {_quoted(task)} [label={_quoted(variable['name'])}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
