"""A session as a program holds it: calls give variables at once, `get` waits, synchronously or not.

The same program runs on engines in this process and on a server. Knows nothing about how calls run.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from contextvars import Token
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from maypole.core.errors import UserError
from maypole.serve.parrot.backends import Backend, Remote, Runtime
from maypole.serve.parrot.calls import CacheScope, Call, Criteria, Of, Ref, Tokenize, Value
from maypole.serve.parrot.functions import CALLER, TEXT, Caller, Kind, SemanticFunction, text_of

Result = TypeVar("Result")

class Variable:
    """A text that is there or will be; outputs of typed functions are read as their type."""

    def __init__(self, session: "Session", name: str, kind: Kind = TEXT) -> None:
        self.session, self.name = session, name
        self._kind = kind
        self.id: str | None = None
        self.criteria: Criteria | None = None
        self.refused: UserError | None = None
        self.awaited = False

    def __repr__(self) -> str:
        return f"<variable {self.name}>"

    def get(self, criteria: Criteria | None = None, timeout: float | None = None) -> Any:
        """The value, once there is one: `criteria` says whether soon (latency) or at little cost (throughput)."""
        return self.session.run(self._get(criteria, timeout))

    async def aget(self, criteria: Criteria | None = None, timeout: float | None = None) -> Any:
        """`get` that leaves the event loop free."""
        return await self.session.arun(self._get(criteria, timeout))

    def set(self, value: Any) -> None:
        """Give an input its value, once."""
        self.session.run(self._set(value))

    async def aset(self, value: Any) -> None:
        """`set` that leaves the event loop free."""
        await self.session.arun(self._set(value))

    def stream(self, criteria: Criteria = "latency", timeout: float | None = None) -> Iterator[str]:
        """The text piece by piece, as it is said."""
        pieces = self._stream(criteria, timeout)
        while (piece := self.session.run(_next(pieces))) is not None:
            yield piece

    async def astream(self, criteria: Criteria = "latency", timeout: float | None = None) -> AsyncGenerator[str, None]:
        """`stream` that leaves the event loop free."""
        pieces = self._stream(criteria, timeout)
        while (piece := await self.session.arun(_next(pieces))) is not None:
            yield piece

    async def _get(self, criteria: Criteria | None, timeout: float | None) -> Any:
        self.awaited = True
        id, patience = await self._sent(criteria), self.session.patience(timeout)
        text = await self.session.backend.get(id, criteria or "throughput", patience)
        try:
            return self._kind.read(text)
        except ValueError as error:
            raise UserError(f"{text[:80]!r} is not of its type", f"variable {self.name}") from error

    async def _set(self, value: Any) -> None:
        await self.session.backend.set(await self._sent(None), text_of(value, self.name).text)

    async def _stream(self, criteria: Criteria, timeout: float | None) -> AsyncGenerator[str, None]:
        id, patience = await self._sent(criteria), self.session.patience(timeout)
        async with aclosing(self.session.backend.stream(id, criteria, patience)) as pieces:
            async for piece in pieces:
                yield piece

    async def _sent(self, criteria: Criteria | None) -> str:
        """Its id, once the call that it comes from was taken."""
        self.criteria = criteria or self.criteria
        await self.session._send()
        return self.known()

    def known(self) -> str:
        """Its id; UserError where its call was refused."""
        if self.refused is not None:
            raise self.refused
        assert self.id is not None
        return self.id


_Taken = Value | Variable


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call that waits to be sent."""

    function: SemanticFunction
    inputs: Mapping[str, "_Taken | list[_Taken]"]
    outputs: tuple[Variable, ...]


class Session:
    """A program's variables on `engines` (of this process, or URLs of OpenAI-compatible endpoints, or a `Runtime`
    that several sessions share), or on the server of `maypole serve` at `url`.

    Calls are sent together at the first `get`, `stream` or `flush`. `seed` makes every draw repeatable. `tokenize` and
    `cache_scope` are those of functions that say nothing of it, `timeout` the seconds that `get` waits.
    """

    def __init__(
        self, engines: "Runtime | Any | None" = None, *, url: str | None = None, api_key: str | None = None,
        seed: int | None = None, tokenize: Tokenize = "rendered", cache_scope: CacheScope = "session",
        timeout: float | None = 600.0,
    ) -> None:  # fmt: skip
        if (engines is None) == (url is None):
            raise UserError("needs one place to run", "Session", "engines=[...] or url=...")
        self.tokenize: Tokenize = tokenize
        self.cache_scope: CacheScope = cache_scope
        self.timeout = timeout
        self._owned: Runtime | None = None
        self._lock = threading.Lock()
        self._pending: list[_Asked] = []
        self._sending: asyncio.Lock | None = None
        self._tokens: list[Token[Caller | None]] = []
        if url is not None:
            self.backend: Backend = Remote(url, api_key=api_key, seed=seed)
        else:
            runtime = engines if isinstance(engines, Runtime) else Runtime(engines)
            self._owned = None if isinstance(engines, Runtime) else runtime
            self.backend = runtime.session(seed)

    def call(self, function: SemanticFunction, *args: Any, **kwargs: Any) -> Any:
        """What calling `function` in a ``with`` of this session gives."""
        inputs = {name: self._given(name, value) for name, value in function.bound(args, kwargs).items()}
        outputs = tuple(Variable(self, name, function.kinds[name]) for name in function.order)
        with self._lock:
            self._pending.append(_Asked(function, inputs, outputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def variable(self, name: str, value: Any = None) -> Variable:
        """An input that several calls take, or that gets its value later by `Variable.set`."""
        made = Variable(self, name)
        self.run(self._make(made))
        if value is not None:
            made.set(value)
        return made

    def flush(self) -> None:
        """Send what was called, so that it runs although nobody waits for it yet."""
        self.run(self._send())

    def gather(self, variables: Sequence[Variable], criteria: Criteria | None = None) -> list[Any]:
        """The values of all."""
        return self.run(self._gather(variables, criteria))

    async def agather(self, variables: Sequence[Variable], criteria: Criteria | None = None) -> list[Any]:
        """`gather` that leaves the event loop free."""
        return await self.arun(self._gather(variables, criteria))

    def explain(self) -> dict[str, Any]:
        """What ran: nodes (calls) with objective, engine, tokens computed and reused, times; edges (variables)."""
        return self.run(self._explain())

    def close(self) -> None:
        """End what runs, and free everything."""
        if not self.backend.closed:
            self.backend.closed = True
            try:
                self.run(self.backend.close())
            finally:
                self.backend.end()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> "Session":
        self._tokens.append(CALLER.set(self))
        return self

    def __exit__(self, *error: object) -> None:
        CALLER.reset(self._tokens.pop())
        self.close()

    async def __aenter__(self) -> "Session":
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        CALLER.reset(self._tokens.pop())
        await asyncio.to_thread(self.close)

    def patience(self, timeout: float | None) -> float | None:
        """Seconds that a `get` waits."""
        return self.timeout if timeout is None else timeout

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work` on the loop of the backend; interrupting it gives it up."""
        future = asyncio.run_coroutine_threadsafe(work, self.backend.loop)
        try:
            return future.result()
        except CancelledError:
            raise UserError("has ended", "session", "a new session") from None
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, Result]) -> Result:
        """`run` that leaves the event loop free."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.backend.loop))

    def _given(self, name: str, value: Any) -> Any:
        """What an input is given; a list of texts and variables stays one."""
        if isinstance(value, list | tuple) and all(isinstance(item, str | Variable) for item in value):
            return [self._given(name, item) for item in value]
        if not isinstance(value, Variable):
            return text_of(value, name)
        if value.session is not self:
            raise UserError("belongs to another session", f"input {name}", "a variable of this session")
        return value

    async def _make(self, variable: Variable) -> None:
        variable.id = await self.backend.variable(variable.name)

    async def _gather(self, variables: Sequence[Variable], criteria: Criteria | None) -> list[Any]:
        for variable in variables:  # all are wanted before the first is waited for
            variable.criteria, variable.awaited = criteria or variable.criteria, True
        return list(await asyncio.gather(*(variable._get(criteria, None) for variable in variables)))

    async def _explain(self) -> dict[str, Any]:
        await self._send()
        return await self.backend.graph()

    async def _send(self) -> None:
        """Send what waits; one submission at a time, so that later ones know the earlier ones' variables."""
        if self._sending is None:
            self._sending = asyncio.Lock()
        async with self._sending:
            with self._lock:
                pending, self._pending = self._pending, []
            if not pending:
                return
            try:
                wanted = [(at, o.name) for at, asked in enumerate(pending) for o in asked.outputs if o.awaited]
                found = await self.backend.submit(self._calls(pending), wanted)
            except UserError as error:
                for output in (output for asked in pending for output in asked.outputs):
                    output.refused = error
                raise
            for asked, ids in zip(pending, found):
                for output, id in zip(asked.outputs, ids):
                    output.id = id

    def _calls(self, pending: Sequence[_Asked]) -> list[Call]:
        places = {output: at for at, asked in enumerate(pending) for output in asked.outputs}

        def given(value: Any) -> Any:
            if isinstance(value, list):
                return [given(item) for item in value]
            if isinstance(value, Value):
                return value
            return Of(places[value], value.name) if value in places else Ref(value.known())

        made = []
        for asked in pending:
            inputs = {name: given(value) for name, value in asked.inputs.items()}
            call = asked.function.call_of(inputs, self.tokenize, self.cache_scope)
            wished = {o.name: o.criteria for o in asked.outputs if o.criteria is not None}
            outputs = {n: replace(w, criteria=wished.get(n, w.criteria)) for n, w in call.outputs.items()}
            made.append(replace(call, outputs=outputs))
        return made


async def _next(pieces: AsyncGenerator[str, None]) -> str | None:
    try:
        return await anext(pieces)
    except StopAsyncIteration:
        return None
