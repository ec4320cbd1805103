"""What each task should be run for, from what is wanted at the end (arXiv 2405.19888, section 5.2). Knows no engine.

A result that is wanted soon (`latency`) makes its own task a latency task, and what that one alone waits for as well.
Where a task waits for several at once only the last of them counts: they are a group, whose members are best run
together in a large batch. A group counts as one: what its members wait for one by one is the next stage, a group if it
is several. What is in no hurry, or nobody asked for, is run for throughput. Unlike in the reference implementation a
producer may be in several groups, a later wish for latency changes what was for throughput, and one producer is no
group.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maypole.serve.parrot.calls import Criteria
    from maypole.serve.parrot.graph import Task


class Objective(IntEnum):
    """What a task is run for; the higher wins where two are asked of it."""

    THROUGHPUT = 0
    GROUP = 1
    LATENCY = 2


THROUGHPUT, GROUP, LATENCY = Objective


@dataclass(slots=True, eq=False)
class Group:
    """Tasks of which only the last to end counts."""

    tasks: "list[Task]" = field(default_factory=list)


def deduce(result: "Task", criteria: "Criteria") -> "list[Task]":
    """Tasks whose objective changes when `result` is wanted."""
    if criteria == "throughput":
        return []  # what everything is until somebody wants it sooner
    before = {task: task.objective for task in _ancestors(result)}
    open_: list[Task | Group] = []
    _hurry(result, open_)
    while open_:
        one = open_.pop()
        if isinstance(one, Group):
            alone = []
            for member in one.tasks:
                several = member.predecessors
                if len(several) > 1:
                    _join(several, open_)
                else:
                    alone += several
            _stage(list(dict.fromkeys(alone)), open_)
        else:
            _stage(one.predecessors, open_)
    return [task for task, objective in before.items() if task.objective != objective]


def _stage(tasks: "list[Task]", open_: "list[Task | Group]") -> None:
    """What is waited for together: one task, or a group."""
    if len(tasks) == 1:
        _hurry(tasks[0], open_)
    elif tasks:
        _join(tasks, open_)


def _hurry(task: "Task", open_: "list[Task | Group]") -> None:
    if task.objective != LATENCY:
        task.objective = LATENCY
        open_.append(task)


def _join(tasks: "list[Task]", open_: "list[Task | Group]") -> None:
    members = set(tasks)
    if any(members == set(group.tasks) for group in tasks[0].groups):
        return
    group = Group(list(tasks))
    for task in tasks:
        task.groups.append(group)
        task.objective = max(task.objective, GROUP)
    open_.append(group)


def _ancestors(result: "Task") -> "list[Task]":
    """`result` and all it is made from."""
    found, open_ = {result: None}, [result]
    while open_:
        for task in open_.pop().predecessors:
            if task not in found:
                found[task] = None
                open_.append(task)
    return list(found)
