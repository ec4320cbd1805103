"""Variables and tasks of one session, and who waits for whom. Knows no engine and no clock.

A task is one completion with the text and inputs before it; a variable has at most one task that produces it and any
number that consume it. A call of several outputs is several tasks in a row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from maypole.core.errors import DataError, UserError
from maypole.serve.parrot.calls import Call, Criteria, Of, Ref, Value, Wanted, in_order
from maypole.serve.parrot.objectives import THROUGHPUT, Group, Objective, deduce
from maypole.serve.parrot.template import Text, chains, parse
from maypole.serve.parrot.transforms import Transform, transform_of


class VariableFailed(UserError):
    """A variable will never have a value: its own completion failed (`cause`), or one that it depends on."""

    def __init__(self, variable: str, cause: str) -> None:
        self.variable, self.cause = variable, cause
        super().__init__(cause, f"variable {variable}")


class AlreadySet(UserError):
    """A variable is given a value for the second time."""


@dataclass(slots=True, eq=False)
class Variable:
    """A text that is there or will be; `content` and `error` are set once, and never both."""

    id: str
    name: str
    producer: "Task | None" = None
    consumers: "list[Task]" = field(default_factory=list)
    content: str | None = None
    error: VariableFailed | None = None

    @property
    def done(self) -> bool:
        return self.content is not None or self.error is not None

    @property
    def unset(self) -> "list[Variable]":
        """What it waits for and nothing produces: itself or what it is made from."""
        found: list[Variable] = []
        open_: list[Variable] = [self]
        seen: set[Variable] = {self}
        while open_:
            variable = open_.pop()
            if variable.done:
                continue
            if variable.producer is None:
                found.append(variable)
                continue
            for source in variable.producer.sources:
                if source not in seen:
                    seen.add(source)
                    open_.append(source)
        return found


@dataclass(slots=True, eq=False)
class Times:
    """Seconds on the clock of who runs the tasks: submitted, inputs there, placed, first token, end."""

    submitted: float = 0.0
    ready: float | None = None
    placed: float | None = None
    first: float | None = None
    ended: float | None = None


@dataclass(slots=True, eq=False)
class Task:
    """A chain of a call, in its session's graph.

    `previous` is the task of the same call that comes before it, `missing` how many of its sources have no value yet,
    `depth` how many tasks follow each other up to this one. Tokens: of the prompt, of these taken from a cache, said.
    """

    id: str
    call: Call
    fills: "tuple[str | Variable, ...]"
    output: Variable
    wanted: Wanted
    transform: Transform
    previous: "Task | None"
    depth: int = 1
    missing: int = 0
    objective: Objective = THROUGHPUT
    groups: "list[Group]" = field(default_factory=list)
    state: str = "waiting"
    times: Times = field(default_factory=Times)
    host: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    said_tokens: int = 0

    @property
    def sources(self) -> list[Variable]:
        """Variables that it cannot start without, the output before it in the call included, each once."""
        found = [fill for fill in self.fills if isinstance(fill, Variable)]
        return list(dict.fromkeys([*found, *([self.previous.output] if self.previous else [])]))

    @property
    def predecessors(self) -> "list[Task]":
        """The tasks that produce its sources, each once."""
        return list(dict.fromkeys(v.producer for v in self.sources if v.producer is not None))

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed")


class Graph:
    """All of one session. `changed` is told of every variable and task that is new or not as it was."""

    def __init__(self, prefix: str, changed: Callable[[Variable | Task], None] = lambda entity: None) -> None:
        self.variables: dict[str, Variable] = {}
        self.tasks: dict[str, Task] = {}
        self._prefix, self._changed = prefix, changed
        self._calls = 0

    def variable(self, name: str) -> Variable:
        """A new variable without a value."""
        made = Variable(f"var-{self._prefix}-{len(self.variables)}", name)
        self.variables[made.id] = made
        self._changed(made)
        return made

    def add(self, calls: Sequence[Call]) -> list[list[Task]]:
        """The tasks of every call; DataError with call and field where one is wrong, and then nothing is added."""
        calls = list(calls)
        found = [self._checked(at, call) for at, call in enumerate(calls)]
        made: dict[int, list[Task]] = {}
        for at in in_order(calls):
            made[at] = self._insert(calls[at], found[at], made)
        for task in (task for tasks in made.values() for task in tasks):
            lost = next((source for source in task.sources if source.error is not None), None)
            if lost is not None and lost.error is not None:
                self.fail(task.output, f"depends on {lost.name}: {lost.error.cause}")
        return [made[at] for at in range(len(calls))]

    def want(self, variable: Variable, criteria: Criteria) -> list[Task]:
        """Say how soon `variable` is wanted; the tasks whose objective that changes."""
        changed = deduce(variable.producer, criteria) if variable.producer else []
        for task in changed:
            self._changed(task)
        return changed

    def set(self, variable: Variable, content: str) -> list[Task]:
        """Give `variable` its value; the tasks that now have all they wait for."""
        if variable.done:
            raise AlreadySet("has a value already", f"variable {variable.name}", "a variable is set once")
        variable.content = content
        self._changed(variable)
        ready = []
        for task in variable.consumers:
            task.missing -= 1
            if task.missing == 0 and not task.ended:
                ready.append(task)
        return ready

    def fail(self, variable: Variable, cause: str) -> list[Variable]:
        """`variable` and everything made from it will have no value; all that failed by this, itself first."""
        failed: list[Variable] = []
        open_ = [(variable, cause)]
        while open_:
            current, why = open_.pop()
            if current.done:
                continue
            current.error = VariableFailed(current.name, why)
            failed.append(current)
            if current.producer is not None and not current.producer.ended:
                current.producer.state = "failed"
                self._changed(current.producer)
            self._changed(current)
            said = why if current is not variable else f"depends on {variable.name}: {cause}"
            open_ += [(task.output, said) for task in current.consumers]
        return failed

    def _checked(self, at: int, call: Call) -> "list[tuple[tuple, str, Transform]]":
        """(fills, output, its transform) of each chain."""
        try:
            cut = chains(parse(call.template), call.inputs, call.outputs)
            transforms = {name: transform_of(wanted.transforms, name) for name, wanted in call.outputs.items()}
        except DataError as error:
            raise DataError(error.what, row=at + 1, field=error.field, expected=error.expected) from error
        for name, given in call.inputs.items():
            if isinstance(given, Ref) and given.variable not in self.variables:
                raise DataError("no such variable", row=at + 1, field=name, expected="an id of this session")
        return [(chain.fills, chain.output, transforms[chain.output]) for chain in cut]

    def _insert(self, call: Call, cut: list, made: dict[int, list[Task]]) -> list[Task]:
        tasks: list[Task] = []
        for fills, output, transform in cut:
            previous = tasks[-1] if tasks else None
            parts = tuple(f.text if isinstance(f, Text) else self._given(call.inputs[f.name], made) for f in fills)
            task = Task(
                f"task-{self._calls}-{len(tasks)}", call, parts, self.variable(output), call.outputs[output], transform,
                previous,
            )  # fmt: skip
            task.output.producer = task
            for source in task.sources:
                source.consumers.append(task)
                self._changed(source)
                task.missing += source.content is None
            task.depth = 1 + max((p.depth for p in task.predecessors), default=0)
            self.tasks[task.id] = task
            self._changed(task)
            tasks.append(task)
        self._calls += 1
        return tasks

    def _given(self, given: Value | Ref | Of, made: dict[int, list[Task]]) -> str | Variable:
        if isinstance(given, Value):
            return given.text
        if isinstance(given, Ref):
            return self.variables[given.variable]
        return next(task.output for task in made[given.call] if task.output.name == given.name)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks.values())
