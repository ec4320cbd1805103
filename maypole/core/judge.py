"""Two questions a judge may be asked, how good is this and which of two is better, and the checked way to ask them.

A judge is any callable; no class to inherit. Rewards have trl's signature, so its reward functions work unchanged.
Whoever needs scores calls `call_reward` or `call_preference`, which await what must be awaited and let no wrong number
through: a judge that fails is an error with its row or a counted gap, never a default score.
Knows nothing about models, prompts' templates or where judges come from.
"""

import asyncio
import inspect
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import JudgeError, UserError

log = logging.getLogger(__name__)

OnJudgeError = Literal["stop", "skip-row"]
Columns = Mapping[str, Sequence[Any]]


class Reward(Protocol):
    """Pointwise: a finite number per row, larger is better, or None for no opinion."""

    def __call__(self, prompts: list, completions: list, **columns: list) -> list[float | None]: ...


class Preference(Protocol):
    """Pairwise: P(a beats b) in [0, 1] per row, or None for no opinion."""

    def __call__(self, prompts: list, a: list, b: list, **columns: list) -> list[float | None]: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer per row, in order. A None is `no_opinion` (the judge's own) or `failed` (skipped after an error)."""

    scores: list[float | None]
    no_opinion: int = 0
    failed: int = 0

    @property
    def array(self) -> NDArray[np.float64]:
        """scores: (rows,), NaN where there is none."""
        return np.array([math.nan if s is None else s for s in self.scores], dtype=np.float64)


def call_reward(
    reward: Reward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Columns | None = None,
    *,
    on_judge_error: OnJudgeError = "stop",
    rows: Sequence[int] | None = None,
) -> Judged:
    """Ask a reward about a batch by keyword; `columns` travel along (`completion_ids` where tokens are known).

    rows: the rows' numbers for messages, counted from 1 if None. A raising judge is asked again row by row, to name
    the row ("stop") or to lose no other ("skip-row"). Time limits are the judge's own; one that raises them is covered.
    Raises JudgeError with the row, and any other UserError (a missing extra, a wrong setting) as it is.
    """
    asked = {**(columns or {}), "prompts": prompts, "completions": completions}
    return _checked(reward, asked, on_judge_error, rows, unit_range=False)


def reward_both(
    reward: Reward,
    prompts: Sequence[Any],
    a: Sequence[Any],
    b: Sequence[Any],
    columns: Columns | None = None,
    *,
    on_judge_error: OnJudgeError = "stop",
) -> NDArray[np.float64]:
    """(2, rows): `call_reward` of completions `a` and of `b`, NaN where there is no score.

    It is one batch, so that a judge that can reads a prompt once for both.
    """
    n = len(prompts)
    for name, answers in (("a", a), ("b", b)):
        if len(answers) != n:
            raise ValueError(f"{n} prompts but {len(answers)} {name}")
    twice = {name: [*column, *column] for name, column in (columns or {}).items()}
    rows = [*range(1, n + 1)] * 2
    judged = call_reward(reward, [*prompts, *prompts], [*a, *b], twice, on_judge_error=on_judge_error, rows=rows)
    return judged.array.reshape(2, n)


def call_preference(
    preference: Preference,
    prompts: Sequence[Any],
    a: Sequence[Any],
    b: Sequence[Any],
    columns: Columns | None = None,
    *,
    on_judge_error: OnJudgeError = "stop",
    rows: Sequence[int] | None = None,
) -> Judged:
    """Ask a preference about a batch of pairs; as `call_reward`, and an answer outside [0, 1] is an error too."""
    asked = {**(columns or {}), "prompts": prompts, "a": a, "b": b}
    return _checked(preference, asked, on_judge_error, rows, unit_range=True)


def symmetric(preference: Preference) -> Preference:
    """The mean of both orders, so that P(a, b) + P(b, a) = 1 and a liking for first place cancels.

    A preference with a true attribute `both_orders` asks for both by itself and is returned as it is.
    """
    if getattr(preference, "both_orders", False):
        return preference

    def both_orders(prompts: list, a: list, b: list, **columns: list) -> list[float | None]:
        there = call_preference(preference, prompts, a, b, columns).scores
        back = call_preference(preference, prompts, b, a, columns).scores
        return [None if p is None or q is None else (p + 1 - q) / 2 for p, q in zip(there, back, strict=True)]

    return both_orders


def as_preference(reward: Reward) -> Preference:
    """Bradley-Terry: P(a beats b) = σ(reward(a) - reward(b)) (Bradley & Terry 1952).

    `completion_ids` belong to one answer, so they are not passed on.
    """

    def bradley_terry(prompts: list, a: list, b: list, **columns: list) -> list[float | None]:
        columns = {name: column for name, column in columns.items() if name != "completion_ids"}
        ahead = np.subtract(*reward_both(reward, prompts, a, b, columns))
        return [None if math.isnan(x) else _sigmoid(x) for x in ahead.tolist()]

    return bradley_terry


def as_reward(preference: Preference, *, against: str) -> Reward:
    """P(completion beats the answer in the column named `against`), e.g. the reference answer or a rival's.

    Raises JudgeError when the rows have no such column.
    """

    def beats(prompts: list, completions: list, **columns: list) -> list[float | None]:
        if against not in columns:
            raise JudgeError(f'no column "{against}" to compare with', expected=f"columns here: {', '.join(columns)}")
        rest = {name: column for name, column in columns.items() if name not in (against, "completion_ids")}
        return call_preference(preference, prompts, completions, columns[against], rest).scores

    return beats


def matrix(
    preference: Preference,
    prompts: Sequence[Any],
    answers: Sequence[Sequence[Any]],
    columns: Columns | None = None,
    *,
    on_judge_error: OnJudgeError = "stop",
    rows: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """P[i, a, b] = P(answer a of prompt i beats its answer b): (n, k, k) for k answers to each of n prompts.

    One call with each unordered pair once, the mirror entry being 1 - P and the diagonal ½; give
    `symmetric(preference)` to have both orders asked. NaN where the judge has no opinion or was skipped. `rows` are the
    prompts' numbers for messages, counted from 1 if None.
    """
    n, k = len(prompts), len(answers[0]) if len(answers) else 0
    if len(answers) != n or any(len(row) != k for row in answers):
        raise ValueError(f"{n} prompts need {n} lists of equally many answers, got {[len(row) for row in answers]}")
    first, second = np.triu_indices(k, 1)
    out = np.full((n, k, k), 0.5)
    if not n or not len(first):
        return out
    pairs = [(i, int(left), int(right)) for i in range(n) for left, right in zip(first, second, strict=True)]
    found = call_preference(
        preference,
        [prompts[i] for i, _, _ in pairs],
        [answers[i][left] for i, left, _ in pairs],
        [answers[i][right] for i, _, right in pairs],
        {name: [column[i] for i, _, _ in pairs] for name, column in (columns or {}).items()},
        on_judge_error=on_judge_error,
        rows=[i + 1 if rows is None else rows[i] for i, _, _ in pairs],
    ).array
    row, left, right = np.array(pairs).T
    out[row, left, right] = found
    out[row, right, left] = 1 - found
    return out


def _checked(
    judge: Callable[..., Any],
    asked: Columns,
    on_judge_error: OnJudgeError,
    rows: Sequence[int] | None,
    *,
    unit_range: bool,
) -> Judged:
    arguments = {name: list(column) for name, column in asked.items()}
    count = len(arguments["prompts"])
    numbers = list(range(1, count + 1)) if rows is None else list(rows)
    for name, column in [*arguments.items(), ("row numbers", numbers)]:
        if len(column) != count:
            raise ValueError(f"{count} prompts but {len(column)} {name}")
    if not count:
        return Judged([])

    answers: list[Any] | None = None
    broken: JudgeError | None = None
    try:
        answers = _ask(judge, arguments, numbers)
    except JudgeError as error:
        broken = error
    scores: list[float | None] = []
    failed = 0
    for i, number in enumerate(numbers):
        try:
            if broken is not None and count == 1:
                raise broken
            alone = {name: [column[i]] for name, column in arguments.items()}
            answer = _ask(judge, alone, [number])[0] if answers is None else answers[i]
            scores.append(_number(answer, number, unit_range))
        except JudgeError as error:
            if on_judge_error == "stop":
                raise
            log.debug("skipped: %s", error)
            failed += 1
            scores.append(None)
    if broken is not None and on_judge_error == "stop":  # each row alone works, the batch does not
        raise broken
    return Judged(scores, no_opinion=scores.count(None) - failed, failed=failed)


def _ask(judge: Callable[..., Any], arguments: dict[str, list], numbers: list[int]) -> list[Any]:
    first, last = min(numbers), max(numbers)
    where = f"row {first}" if first == last else f"rows {first} to {last}"
    try:
        answers = judge(**arguments)
        if inspect.isawaitable(answers):
            answers = _wait(answers)
        answers = list(answers)
    except UserError as error:
        if isinstance(error, JudgeError):
            raise JudgeError(error.what, where, error.expected) from error
        raise
    except Exception as error:
        raise JudgeError(f"the judge raised {type(error).__name__}: {error}", where) from error
    if len(answers) != len(numbers):
        raise JudgeError(f"the judge returned {len(answers)} answers", where, f"one per row, {len(numbers)}")
    return answers


def _number(answer: Any, row: int, unit_range: bool) -> float | None:
    if answer is None:
        return None
    expected = "a number in [0, 1] or None" if unit_range else "a finite number or None"
    try:
        value = math.nan if isinstance(answer, str) else float(answer)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or (unit_range and not 0 <= value <= 1):
        raise JudgeError(f"the judge answered {str(answer)[:80]!r}", f"row {row}", expected)
    return value


def _wait(answers: Awaitable[Any]) -> Any:
    async def awaited() -> Any:
        return await answers

    future = asyncio.run_coroutine_threadsafe(awaited(), _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """One loop per process in a thread of its own: an async judge keeps its connections from batch to batch, and may
    be called from code that already runs in a loop. A fork inherits the loop but not the thread, hence `pid`."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"judges-{pid}", daemon=True).start()
    return loop


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
