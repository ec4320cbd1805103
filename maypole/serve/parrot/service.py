"""Programs of many completions run where the engines are: no round trip between a call and those that wait for it.

A task starts as soon as its sources have values and the scheduler gives it an engine. One service belongs to one event
loop, on which all of it is called. Knows nothing about HTTP or Python functions.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from maypole.core.errors import RemoteError, UserError
from maypole.core.seeds import derive
from maypole.engine.request import Output
from maypole.serve.parrot.calls import Call, Criteria
from maypole.serve.parrot.graph import Task, Variable, VariableFailed
from maypole.serve.parrot.hosts import Host, Part, Prompt
from maypole.serve.parrot.placement import HostLoad, Job, Scheduler
from maypole.serve.parrot.sessions import Session, SessionLimits, TooMany, Unknown
from maypole.serve.parrot.transforms import TransformFailed

log = logging.getLogger(__name__)

BATCH = 0.002
"""Seconds that calls wait for others of their batch, unless somebody wants a result before."""
PROGRESS = 0.5
"""Seconds between two notes to watchers of how far a completion is."""


class StillWaiting(UserError):
    """A variable got no value in the time it was waited for; it may get one later."""


class Service:
    """Sessions on `hosts`, whose names differ; `on_output` is told of every completion."""

    def __init__(
        self, hosts: Sequence[Host], *, limits: SessionLimits | None = None,
        on_output: Callable[[Output], None] = lambda output: None,
    ) -> None:  # fmt: skip
        self.hosts = {host.name: host for host in hosts}
        self._on_output = on_output
        self.limits = limits or SessionLimits()
        self.sessions: dict[str, Session] = {}
        self.scheduler = Scheduler([_load(host) for host in hosts])
        self._opened = self._begun = self._variables = self._characters = 0
        self._waiting: dict[Job, asyncio.Future[HostLoad]] = {}

    def open(self, *, seed: int | None = None, owner: int | None = None, ttl: float | None = None) -> Session:
        """A new session; TooMany where there are as many as may be."""
        if len(self.sessions) >= self.limits.sessions:
            what = f"{len(self.sessions):,} sessions are open"
            raise TooMany(what, "session", "fewer at once: close those that are done")
        chosen = secrets.randbits(63) if seed is None else seed
        ttl = min(ttl or self.limits.ttl, self.limits.ttl)
        session = Session(self._opened, seed=chosen, owner=owner, ttl=ttl)
        self._opened += 1
        self.sessions[session.id] = session
        self.use(session)
        self._expire_later(session, ttl)
        return session

    def use(self, session: Session) -> None:
        """Note that somebody still cares; Unknown where the session has ended."""
        if session.closed:
            raise Unknown("has ended", "session", "a new session")
        session.used = asyncio.get_running_loop().time()

    def close(self, session: Session) -> None:
        """End what runs and forget everything."""
        if self.sessions.pop(session.id, None) is None:
            return
        session.end()
        self._variables -= len(session.graph.variables)
        self._characters -= session.characters
        for work in session.working.values():
            work.cancel()

    def close_all(self) -> None:
        """End every session."""
        for session in list(self.sessions.values()):
            self.close(session)

    def submit(self, session: Session, calls: Sequence[Call]) -> list[list[Task]]:
        """The tasks of each call, which start with their batch; UserError, and nothing is added, where one is wrong."""
        self.use(session)
        size = sum(len(c.template) + sum(len(getattr(g, "text", "")) for g in c.inputs.values()) for c in calls)
        self._room(session, sum(len(call.outputs) for call in calls), size)
        for at, call in enumerate(calls):
            if not any(host.serves(self._model(call)) for host in self.hosts.values()):
                raise UserError(f"no model {call.models[0]!r}", f"call {at}: models", "a model that is served")
        made = session.graph.add(calls)
        self._hold(session, sum(map(len, made)), size)
        now = asyncio.get_running_loop().time()
        for task in (task for tasks in made for task in tasks):
            task.times.submitted = now
            session.pending[task] = None
            if task.wanted.criteria is not None:
                self._want(session, task.output, task.wanted.criteria)
        if session.flushing is None:
            session.flushing = asyncio.get_running_loop().call_later(BATCH, self.flush, session)
        return made

    def flush(self, session: Session) -> None:
        """Close the batch: what waits for nothing starts."""
        if session.flushing is not None:
            session.flushing.cancel()
            session.flushing = None
        pending, session.pending = session.pending, {}
        for task in pending:
            if task.missing == 0 and not task.ended:
                self._begin(session, task)

    def variable(self, session: Session, name: str) -> Variable:
        """A variable that `set` gives its value."""
        self.use(session)
        self._room(session, 1, len(name))
        self._hold(session, 1, len(name))
        return session.graph.variable(name)

    def set(self, session: Session, variable: Variable, content: str) -> None:
        """Give a variable its value; AlreadySet where it has one, UserError where a completion will."""
        self.use(session)
        if variable.producer is not None:
            raise UserError("is the output of a call", f"variable {variable.name}", "an input without a value")
        self._room(session, 0, len(content))
        self._set(session, variable, content)
        self._hold(session, 0, len(content))

    async def get(
        self, session: Session, variable: Variable, criteria: Criteria = "throughput", timeout: float | None = None
    ) -> str:
        """The value of a variable once it has one; VariableFailed where it never will, StillWaiting after `timeout`."""
        self._ask(session, variable, criteria)
        if not variable.done:
            await self._more(session, variable, timeout, timeout, ended=True)
        return _content(variable)

    async def stream(
        self, session: Session, variable: Variable, criteria: Criteria = "throughput", timeout: float | None = None
    ) -> AsyncGenerator[str, None]:
        """The value of a variable piece by piece; in one where it is transformed, or nobody says it now."""
        self._ask(session, variable, criteria)
        clock, told, at = asyncio.get_running_loop().time, "", 0
        until = None if timeout is None else clock() + timeout
        while not variable.done:
            pieces = session.partial.get(variable, [])
            if len(pieces) > at:
                piece, at = "".join(pieces[at:]), len(pieces)
                told += piece
                yield piece
                continue
            left = None if until is None else until - clock()
            await self._more(session, variable, timeout, left, ended=False)
        content = _content(variable)
        if not content.startswith(told):  # begun anew elsewhere, and said otherwise there
            raise RemoteError(f"variable {variable.name}: the engine failed while it was read", retryable=True)
        if len(content) > len(told):
            yield content[len(told) :]

    def _ask(self, session: Session, variable: Variable, criteria: Criteria) -> None:
        """Somebody wants `variable`: what has to run for it runs accordingly."""
        self.use(session)
        if not variable.done:
            self._want(session, variable, criteria)
            self.flush(session)

    async def _more(
        self, session: Session, variable: Variable, timeout: float | None, left: float | None, *, ended: bool
    ) -> None:
        """Wait `left` of `timeout` seconds for more of `variable`, or for all of it."""
        try:
            await session.changed(variable, left, ended=ended)
        except TimeoutError:
            raise _late(variable, timeout or 0.0) from None
        self.use(session)

    def _model(self, call: Call) -> str | None:
        """The first of the call's models that is served, or the first."""
        served = (m for m in call.models if any(host.serves(m) for host in self.hosts.values()))
        return next(served, call.models[0] if call.models else None)

    def _room(self, session: Session, tasks: int, size: int) -> None:
        limits = self.limits
        if len(session.graph.variables) + tasks > 2 * limits.tasks or len(session.graph.tasks) + tasks > limits.tasks:
            raise TooMany(f"a session has {limits.tasks:,} tasks at most", "session", "a new session")
        if self._variables + tasks > 2 * limits.all_tasks:
            raise TooMany(f"the sessions have {self._variables:,} variables together", "session", "fewer")
        if session.characters + size > limits.characters:
            raise TooMany(f"a session holds {limits.characters:,} characters at most", "session", "a new session")
        if self._characters + size > limits.all_characters:
            raise TooMany("the sessions' texts fill the memory they may have", "session", "fewer or shorter texts")

    def _hold(self, session: Session, variables: int, size: int) -> None:
        session.characters += size
        self._characters += size
        self._variables += variables

    def _want(self, session: Session, variable: Variable, criteria: Criteria) -> None:
        changed = session.graph.want(variable, criteria)
        for task in changed:
            if (job := session.jobs.get(task)) is not None:
                self.scheduler.change(job, task.objective)
        if changed:
            self._place()

    def _begin(self, session: Session, task: Task) -> None:
        task.state, task.times.ready = "queued", asyncio.get_running_loop().time()
        session.touched(task)
        work = asyncio.get_running_loop().create_task(self._work(session, task))
        session.working[task] = work
        work.add_done_callback(lambda _: session.working.pop(task, None))

    async def _work(self, session: Session, task: Task) -> None:
        """One task from its inputs to its output."""
        parts = [*session.said.pop(task.previous, ())] if task.previous else []
        parts += [Part(f if isinstance(f, str) else f.content or "") for f in task.fills]
        try:
            output, host = await self._completed(session, task, parts)
            if output.finish_reason not in ("stop", "length"):
                raise UserError(f"ended by {output.finish_reason}")
            text = task.transform(output.text)
        except (UserError, TransformFailed, RemoteError) as error:
            self._fail(session, task, _cause(error))
            return
        except Exception as error:  # its message may quote others' texts: only its kind is told
            log.error("a task failed: %s", type(error).__name__)
            log.debug("its traceback", exc_info=error)
            self._fail(session, task, f"the engine failed: {type(error).__name__}")
            return
        if any(follower.previous is task for follower in task.output.consumers):
            session.said[task] = [*parts, host.said(output)]
        self._on_output(output)
        self._hold(session, 0, len(text))
        task.state, task.times.ended = "done", asyncio.get_running_loop().time()
        session.touched(task)
        self._set(session, task.output, text)

    async def _completed(self, session: Session, task: Task, parts: Sequence[Part]) -> tuple[Output, Host]:
        """The task's completion; where an engine fails in the middle, another one is asked, once."""
        model, salt = self._model(task.call), _salt(session, task)
        barred: frozenset[str] = frozenset()
        while True:
            readers = [h for h in self.hosts.values() if h.alive and h.serves(model) and h.name not in barred]
            if not readers:
                raise UserError("no engine is left that serves the model")
            prompt = await readers[0].read(parts, task.call.tokenize, model, salt)
            job = self._job(session, task, prompt, readers[0], model, barred)
            if not self.scheduler.possible(job):
                most = self.scheduler.most(job)
                raise UserError(f"needs {job.tokens:,} tokens", "prompt", f"at most {most:,} fit an engine")
            try:
                host = await self._placed(session, task, job)
                try:
                    return await self._run(session, task, host, prompt, model, salt), host
                except UserError:
                    raise
                except Exception:
                    session.partial.pop(task.output, None)
                    others = [h for h in readers if h is not host and h.alive]
                    if barred or not others:
                        raise
                    barred = frozenset({host.name})
                    log.warning("engine %s failed at a task, which is given to another", host.name)
            finally:
                self.scheduler.withdraw(job)
                self._waiting.pop(job, None)
                session.jobs.pop(task, None)
                self._place()

    def _job(
        self, session: Session, task: Task, prompt: Prompt, host: Host, model: str | None, barred: frozenset[str]
    ) -> Job:
        tokens = prompt.tokens + task.wanted.sampling.max_tokens
        tokens = min(tokens, host.max_length or tokens)
        self._begun += 1
        order = (session.number, -task.depth, self._begun)
        return Job(task.id, model, tokens, task.objective, order, prompt.boundaries, barred)

    async def _placed(self, session: Session, task: Task, job: Job) -> Host:
        future: asyncio.Future[HostLoad] = asyncio.get_running_loop().create_future()
        self._waiting[job], session.jobs[task] = future, job
        self.scheduler.submit(job)
        self._place()
        host = self.hosts[(await future).name]
        task.state, task.host, task.times.placed = "running", host.name, asyncio.get_running_loop().time()
        session.touched(task)
        return host

    async def _run(
        self, session: Session, task: Task, host: Host, prompt: Prompt, model: str | None, salt: str | None
    ) -> Output:
        clock = asyncio.get_running_loop().time
        seed = derive(session.seed, task.id) if task.wanted.seed is None else task.wanted.seed
        sampling = replace(task.wanted.sampling, seed=seed)
        plain = not task.wanted.transforms
        task.prompt_tokens, task.said_tokens, noted = prompt.tokens, 0, clock()

        def attentive() -> bool:
            return task.times.first is None or session.followed(task.output)

        running = host.run(prompt, sampling, model, salt, int(task.objective), attentive)
        async with aclosing(running) as turns:
            async for chunks in turns:
                if task.times.first is None:
                    task.times.first = clock()
                for chunk in chunks:
                    task.said_tokens += len(chunk.token_ids)
                    if chunk.text and plain:
                        session.partial.setdefault(task.output, []).append(chunk.text)
                    if chunk.output is not None:
                        used = chunk.output.usage
                        task.prompt_tokens = used.prompt_tokens or prompt.tokens
                        task.cached_tokens, task.said_tokens = used.cached_tokens, used.completion_tokens
                        return chunk.output
                session.tell(task.output)
                if clock() - noted > PROGRESS:
                    noted = clock()
                    session.touched(task)
        raise RemoteError("the engine ended a completion in the middle", retryable=True)

    def _set(self, session: Session, variable: Variable, content: str) -> None:
        ready = session.graph.set(variable, content)
        session.partial.pop(variable, None)
        session.tell(variable)
        for task in ready:
            if task not in session.pending:
                self._begin(session, task)

    def _fail(self, session: Session, task: Task, cause: str) -> None:
        task.times.ended = asyncio.get_running_loop().time()
        session.partial.pop(task.output, None)
        for variable in session.graph.fail(task.output, cause):
            session.tell(variable)

    def _place(self) -> None:
        """Start what the scheduler lets start; what no engine can run any more fails."""
        for job, load in self.scheduler.place():
            future = self._waiting.pop(job, None)
            if future is None or future.done():
                self.scheduler.withdraw(job)
            else:
                future.set_result(load)
        if not all(host.alive for host in self.hosts.values()):
            for job in [job for job in self._waiting if not self.scheduler.possible(job)]:
                with suppress(asyncio.InvalidStateError):
                    self._waiting.pop(job).set_exception(UserError("no engine is left that serves the model"))

    def _expire_later(self, session: Session, seconds: float) -> None:
        session.expiring = asyncio.get_running_loop().call_later(seconds, self._expire, session)

    def _expire(self, session: Session) -> None:
        left = session.used + session.ttl - asyncio.get_running_loop().time()
        if left > 0:
            self._expire_later(session, left)
        else:
            self.close(session)


def _load(host: Host) -> HostLoad:
    return HostLoad(
        host.name, host.capacity, shares=host.shares, serves=lambda model: host.alive and host.serves(model)
    )


def _salt(session: Session, task: Task) -> str | None:
    """Who shares what is computed for the prompt of `task`."""
    scope = task.call.cache_scope
    if scope == "call":
        return f"call {session.id} {task.id}"
    if scope == "session":
        return f"session {session.id}"
    return None if scope == "public" else f"key {session.owner}"


def _content(variable: Variable) -> str:
    """The value of a variable that has one, or never will."""
    if variable.error is not None:
        raise VariableFailed(variable.name, variable.error.cause)
    assert variable.content is not None
    return variable.content


def _cause(error: Exception) -> str:
    """In one line."""
    if not isinstance(error, UserError):
        return str(error)
    return f"{error.what} ({error.expected})" if error.expected else error.what


def _late(variable: Variable, seconds: float) -> StillWaiting:
    names = ", ".join(v.name for v in variable.unset if v.producer is None)
    expected = f"set its inputs: {names}" if names else "wait longer"
    return StillWaiting(f"no value within {seconds:g} seconds", f"variable {variable.name}", expected)
