"""Which sequence runs when: admit what fits, prefill it as one tree, then one token for every running sequence a step.

Sequences come and go at any step; each keeps one row of the cache, and the rows in use are always the first ones.
Knows nothing about threads or texts.
"""

from collections import deque
from collections.abc import Callable, Iterable

import torch

from maypole.core.errors import UserError
from maypole.engine.adapters import Adapter
from maypole.engine.kv_slots import KVSlots
from maypole.engine.prefix_tree import shared_length
from maypole.engine.runner import Runner
from maypole.engine.sampling import draw
from maypole.engine.sequence import Sequence
from maypole.engine.settings import Bounds


class Scheduler:
    """The queue and the running rows of one engine.

    `bind(name)` gives the adapter of that name and the version of its weights at this moment.
    """

    def __init__(
        self, runner: Runner, slots: KVSlots, bounds: Bounds, bind: Callable[[str | None], tuple[Adapter | None, int]]
    ) -> None:
        self.runner, self.slots, self.bounds, self.bind = runner, slots, bounds, bind
        self.inbox: deque[Sequence] = deque()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.admitting = True
        self._stepped: list[Sequence] = []
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        return bool(self.inbox or self.waiting or self.running)

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences; may be called while another thread is inside `step`."""
        self.inbox.extend(sequences)

    def check_fits(self, prompt: int, room: int) -> None:
        """UserError where a sequence could never run."""
        if not self.slots.fits(1, room):
            held = self.slots.max_bytes // self.slots.bytes_per_token
            raise UserError(
                f"a prompt of {prompt:,} tokens and its completion need {room:,} tokens of cache",
                "kv_bytes",
                f"at most {held:,} tokens fit; shorten the prompt or max_tokens, or raise kv_bytes",
            )

    def step(self) -> None:
        """One forward: the prompts of newly admitted sequences, or the next token of all running ones."""
        self.sweep()
        admitted = self._admit() if self.admitting else []
        self._stepped = admitted or list(self.running)
        if admitted:
            self._prefill(admitted)
        elif self.running:
            self._decode()
        self._stepped = []

    def sweep(self) -> None:
        """Take in what was submitted and let go of what was ended from outside."""
        while self.inbox:
            sequence = self.inbox.popleft()
            sequence.arrival = self._arrivals
            self._arrivals += 1
            if sequence.limit == 0 and sequence.ended is None:
                sequence.version, sequence.ended = self.bind(sequence.target)[1], "length"
            self.waiting.append(sequence)
        for sequence in [s for s in self.waiting if s.ended is not None or s.done]:
            self.waiting.remove(sequence)
            if not sequence.done:
                sequence.report(0)
        for sequence in [s for s in self.running if s.ended is not None or s.done]:
            self._release(sequence)
            if not sequence.done:
                sequence.report(0)

    def fail(self, error: BaseException) -> None:
        """Every sequence ends with `error`, the cache is empty; who listens is told when nothing of it is left."""
        queued = [*self.inbox, *self.waiting, *self.running]
        failed = [*queued, *(s for s in self._stepped if s not in queued and not s.done)]
        self._stepped = []
        self.inbox.clear()
        self.waiting.clear()
        self.running.clear()
        for sequence in failed:
            sequence.row, sequence.error = None, error
        for sequence in failed:
            if sequence.listener is not None:
                sequence.report(0)

    def _admit(self) -> list[Sequence]:
        """The first of the queue that fit beside what runs, and what shares a beginning with them counts once."""
        if not self.waiting:
            return []
        chosen: list[Sequence] = []
        tokens, longest = 0, max((s.room for s in self.running), default=0)
        for sequence in sorted(self.waiting, key=lambda s: (-s.request.priority, s.arrival)):
            count = len(self.running) + len(chosen) + 1
            if count > self.bounds.max_seqs or not self.slots.fits(count, max(longest, sequence.room)):
                break
            shared = max(
                (shared_length(o.prompt, sequence.prompt) for o in chosen if o.sharing == sequence.sharing), default=0
            )
            if chosen and tokens + len(sequence.prompt) - shared > self.bounds.max_batch_tokens:
                break
            tokens += len(sequence.prompt) - shared
            longest = max(longest, sequence.room)
            chosen.append(sequence)
        for sequence in chosen:
            self.waiting.remove(sequence)
        return chosen

    def _prefill(self, sequences: list[Sequence]) -> None:
        used = len(self.running)
        longest = max(s.room for s in [*self.running, *sequences])
        for i, sequence in enumerate(sequences):
            sequence.row = used + i
            sequence.adapter, sequence.version = self.bind(sequence.target)
        self.running += sequences
        self.slots.reserve(len(self.running), longest, used)
        rows = [used + i for i in range(len(sequences))]
        hidden, tree = self.runner.tree(
            [s.prompt for s in sequences],
            [s.adapter for s in sequences],
            [s.request.cache_salt for s in sequences],
            store=(self.slots, rows),
        )
        for sequence, start in zip(sequences, tree.starts):
            sequence.cached = start
        last = torch.tensor([int(path[-1]) for path in tree.paths], device=hidden.device)
        self._sample(sequences, hidden[last])

    def _decode(self) -> None:
        running = self.running
        hidden = self.runner.decode(
            self.slots,
            [s.generated[-1] for s in running],
            [s.held for s in running],
            [s.adapter for s in running],
        )
        self._sample(list(running), hidden)

    def _sample(self, sequences: list[Sequence], hidden: torch.Tensor) -> None:
        for rows, logits in self.runner.logits(hidden):
            chunk = sequences[rows]
            for sequence, drawn in zip(chunk, draw(logits.float(), [s.next_draw for s in chunk])):
                sequence.append(drawn)
        for sequence in sequences:
            if sequence.ended is not None:
                self._release(sequence)
            sequence.report(1)

    def _release(self, sequence: Sequence) -> None:
        """The last running row takes the place of the one that leaves."""
        assert sequence.row is not None
        last = self.running[-1]
        assert last.row is not None
        if last is not sequence:
            self.slots.move(last.row, sequence.row, last.held)
            self.running[sequence.row] = last
            last.row = sequence.row
        self.running.pop()
        sequence.row = None
