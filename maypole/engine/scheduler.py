"""Which sequence runs when: each step is one forward with a token of all that generate and stretches of prompts.

Sequences come and go at any step. Who begins like somebody before reads that beginning from the cache; when memory is
short the youngest makes way and starts again later, with what it has said so far. Knows nothing about threads or texts.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice

import torch
import torch.nn.functional as F

from maypole.core.errors import UserError
from maypole.engine.adapter_store import AdapterStore
from maypole.engine.adapters import Adapter
from maypole.engine.kv_memory import KVMemory, kept
from maypole.engine.prefix_cache import LEAST, Node
from maypole.engine.prefix_tree import shared_length
from maypole.engine.request import Target
from maypole.engine.runner import Runner
from maypole.engine.sampling import draw
from maypole.engine.sequence import Sequence, cancel
from maypole.engine.settings import Bounds
from maypole.engine.step_plan import Piece

AHEAD = 64
"""Tokens beyond its prompt that a sequence is given room for when it starts; to move it later is dear."""


class Scheduler:
    """The queue and the running sequences of one engine.

    `adapters` says whose turn it is, and gives the adapter of a name and the version of its weights. With `alone`
    nothing is shared and prompts run by themselves, so that a sequence's numbers are the same to the bit whatever runs
    beside it.
    """

    STATS = ("running", "waiting", "kv_tokens", "prefix_tokens", "kv_bytes", "kv_budget", "preemptions")

    def __init__(
        self,
        runner: Runner,
        memory: KVMemory,
        bounds: Bounds,
        adapters: AdapterStore,
        *,
        alone: bool = False,
    ) -> None:
        self.runner, self.memory, self.bounds, self.adapters, self.alone = runner, memory, bounds, adapters, alone
        self.inbox: deque[Sequence] = deque()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.admitting = True
        self.preemptions = 0
        self._stepped: list[Sequence] = []
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        return bool(self.inbox or self.waiting or self.running)

    @property
    def everything(self) -> list[Sequence]:
        """What waits, runs, or has just been submitted."""
        return [*self.waiting, *self.running, *self.inbox.copy()]

    @property
    def _alike(self) -> int:
        """Tokens of which every forward has a multiple where results must not depend on company."""
        return max(self.bounds.max_seqs, 16)

    @property
    def begun(self) -> list[Sequence]:
        """What has started and is not done, at work or made to wait."""
        return [*self.running, *(s for s in self.waiting if s.generated)]

    def wanted(self) -> Collection[Target]:
        """The adapters that waiting sequences ask for, in the order in which they would start."""
        waiting = [*sorted(self.waiting, key=_order), *self.inbox.copy()]
        return dict.fromkeys(s.target for s in waiting if s.target is not None and not s.generated)

    def in_use(self) -> Collection[Adapter]:
        """The adapters of what has begun."""
        return {s.adapter for s in self.begun if s.adapter is not None}

    def stats(self) -> dict[str, int]:
        """Sequences waiting and running and how often one made way; tokens of running sequences and of prefixes in the
        cache, bytes allocated for both, and how many there may be."""
        return {
            "running": len(self.running),
            "waiting": len(self.waiting) + len(self.inbox),
            "kv_tokens": sum(s.held for s in self.running),
            "prefix_tokens": self.memory.prefixes.tokens,
            "kv_bytes": self.memory.bytes,
            "kv_budget": self.memory.max_bytes,
            "preemptions": self.preemptions,
        }

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences; may be called while another thread is inside `step`."""
        self.inbox.extend(sequences)

    def check_fits(self, prompt: int, room: int) -> None:
        """UserError where a sequence could never run."""
        if not self.memory.fits_alone(room):
            held = self.memory.max_bytes // self.memory.bytes_per_token
            raise UserError(
                f"a prompt of {prompt:,} tokens and its completion need {room:,} tokens of cache",
                "kv_bytes",
                f"at most {held:,} tokens fit; shorten the prompt or max_tokens, or raise kv_bytes",
            )

    def step(self) -> bool:
        """One forward, and a new token for every sequence whose tokens it has all read; False where all wait for
        adapters that are on their way."""
        self.sweep()
        pieces = self._pieces()
        if not pieces:
            return not self.waiting
        self._stepped = [sequence for sequence, _ in pieces]
        hidden = self.runner.step(
            [Piece(sequence, count) for sequence, count in pieces],
            [sequence.tokens(sequence.held, sequence.held + count) for sequence, count in pieces],
            [sequence.adapter for sequence in self._stepped],
            alike=self._alike if self.alone else 0,
        )
        for sequence, count in pieces:
            sequence.held += count
        ready = [i for i, s in enumerate(self._stepped) if s.held == s.length]
        if ready:
            self._sample([self._stepped[i] for i in ready], hidden[torch.tensor(ready, device=hidden.device)])
        self._stepped = []
        if self.adapters.draining:
            self.adapters.reap()
        return True

    def sweep(self) -> None:
        """Take in what was submitted and let go of what was ended from outside or has no time left."""
        while self.inbox:
            sequence = self.inbox.popleft()
            sequence.arrival = self._arrivals
            self._arrivals += 1
            if sequence.limit == 0 and sequence.ended is None:
                sequence.version, sequence.ended = self.adapters.version(sequence.target), "length"
            self.waiting.append(sequence)
        now = time.monotonic()
        for queue in (self.waiting, self.running):
            for sequence in queue:
                if sequence.ended is None and sequence.expired(now):
                    sequence.ended = "timeout"
            for sequence in [s for s in queue if s.ended is not None or s.done]:
                queue.remove(sequence)
                if queue is self.running:
                    self.memory.release(sequence)
                if not sequence.done:
                    sequence.report()
        self._tell_failures()

    def end(self, sequences: Iterable[Sequence]) -> None:
        """Cancel them and let go of them."""
        cancel(sequences)
        self.sweep()

    def _tell_failures(self) -> None:
        """Who waits for an adapter that could not be loaded is told why, and the adapter has another chance."""
        failed: set[Target] = set()
        for sequence in [s for s in self.waiting if s.target is not None and not s.generated]:
            sequence.error = self.adapters.failure(sequence.target)
            if sequence.error is not None and sequence.target is not None:
                failed.add(sequence.target)
                self.waiting.remove(sequence)
                sequence.report()
        if failed:
            self.adapters.forgive(failed)

    def fail(self, error: BaseException) -> None:
        """Every sequence ends with `error`, the cache is empty; who listens is told when nothing of it is left."""
        queued = [*self.inbox, *self.waiting, *self.running]
        failed = [*queued, *(s for s in self._stepped if s not in queued and not s.done)]
        self._stepped = []
        self.inbox.clear()
        self.waiting.clear()
        self.running.clear()
        self.memory.free()
        for sequence in failed:
            sequence.slots, sequence.node, sequence.error = None, None, error
        for sequence in failed:
            if sequence.listener is not None:
                sequence.report()

    def _pieces(self) -> list[tuple[Sequence, int]]:
        """What the next forward reads: (sequence, how many of its next tokens), those that generate first."""
        generating = self._room_to_go_on()
        goes_on = {id(s) for s in generating}
        reading: list[tuple[Sequence, int]] = []
        budget = max(self.bounds.max_batch_tokens - len(generating), 1)
        for sequence in [s for s in self.running if id(s) not in goes_on]:
            budget = self._read(sequence, budget, reading)
        self._admit(budget, reading)
        if self.alone and reading:
            return reading[:1]
        return [*((s, 1) for s in sorted(generating, key=_place)), *reading]

    def _reads_prompt(self, sequence: Sequence) -> bool:
        """Whether the next tokens go through the forward as a stretch rather than one by one.

        What is read again after making way goes as it went the first time where numbers must be the same to the bit.
        """
        return sequence.held < len(sequence.prompt) if self.alone else sequence.length - sequence.held > 1

    def _read(self, sequence: Sequence, budget: int, pieces: list[tuple[Sequence, int]]) -> int:
        """Add the next stretch of a prompt; returns what is left of the budget."""
        left = (len(sequence.prompt) if self.alone else sequence.length) - sequence.held
        count = min(left, self.bounds.max_batch_tokens if self.alone else budget)
        if count > 0:
            pieces.append((sequence, count))
        return budget - count

    def _room_to_go_on(self) -> list[Sequence]:
        """The running sequences that read one token now, each with room for it, oldest first; others make way."""
        found: list[Sequence] = []
        gone: set[int] = set()
        for sequence in sorted(self.running, key=_order):
            if id(sequence) in gone or self._reads_prompt(sequence):
                continue
            while not self.memory.grow(sequence, sequence.held + 1 - sequence.base):
                youngest = max(self.running, key=_order)
                self._make_way(youngest)
                gone.add(id(youngest))
                if youngest is sequence:
                    break
            else:
                found.append(sequence)
        return [s for s in found if id(s) not in gone]

    def _make_way(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.memory.release(sequence)
        self.waiting.append(sequence)
        self.preemptions += 1

    def _admit(self, budget: int, pieces: list[tuple[Sequence, int]]) -> None:
        """Start the first of the queue while there is room for them and something left of the budget."""
        starting: list[Sequence] = []
        absent: set[Target | None] = set()  # one that comes meanwhile is for the first who waits for it, a step later
        if any(s.target is not None and not s.generated for s in self.waiting):
            self.adapters.exchange()
        for sequence in sorted(self.waiting, key=_order):
            if budget <= 0 or len(self.running) >= self.bounds.max_seqs:
                break
            if not (self.admitting or sequence.generated):
                continue
            if not sequence.generated:
                bound = None if sequence.target in absent else self.adapters.admit(sequence.target)
                if bound is None:
                    absent.add(sequence.target)
                    continue
                sequence.adapter, sequence.version = bound
            if self._soon_known(sequence, starting):
                continue
            known = None if self.alone else self._known(sequence)
            # A prefix may take the very room that the rest needs: where nothing else runs it makes way.
            if not (self._placed(sequence, known) or (not self.running and self._placed(sequence, None))):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            starting.append(sequence)
            if sequence.started is None:
                sequence.started = time.monotonic()
            if not sequence.generated:
                sequence.cached = sequence.held
                if sequence.target is not None:
                    self.adapters.started(sequence.target)
            budget = self._read(sequence, budget, pieces)

    def _placed(self, sequence: Sequence, known: Node | None) -> bool:
        """Give `sequence` a row for what comes after `known`; False, and nothing changed, where there is no room.

        What nobody at work reads of `known` is copied into the row while there is plenty of room: attention to it is
        then that to the row, and need not be joined to it at every token.
        """
        memory, shared = self.memory, self._shared(known)
        base = 0 if shared is None else shared.end
        if known is not shared and known is not None and memory.spare(_room(sequence, base)):
            memory.begin_at(sequence, shared)
            if memory.place(sequence, _room(sequence, base), self._others(sequence, base)):
                memory.bring(sequence, known)
                return True
        memory.begin_at(sequence, known)
        if memory.place(sequence, _room(sequence, sequence.base), self._others(sequence, sequence.base)):
            return True
        memory.begin_at(sequence, None)
        return False

    def _others(self, sequence: Sequence, base: int) -> int:
        """How many of the first who wait, as many as may run too, would have rows of the same class."""
        length = self.memory.length_for(_room(sequence, base))
        soon = islice(self.waiting, self.bounds.max_seqs - len(self.running))
        return sum(s is not sequence and self.memory.length_for(_room(s, base)) == length for s in soon)

    def _shared(self, known: Node | None) -> Node | None:
        """The last run up to `known` that somebody at work reads."""
        read = {node for s in self.running if s.node is not None for node in s.node.chain()}
        return next((node for node in known.chain() if node in read), None) if known is not None else None

    def _soon_known(self, sequence: Sequence, starting: list[Sequence]) -> bool:
        """Whether somebody is just reading what this one begins with, so that waiting a step saves reading it twice."""
        if self.alone or sequence.length <= LEAST:
            return False
        ids = sequence.tokens(0, sequence.length)
        for other in [*starting, *(s for s in self.running if s.length - s.held > 1)]:
            if other.sharing == sequence.sharing:
                shared = min(shared_length(other.prompt, ids), len(ids) - 1)
                if shared >= LEAST and shared > other.held:
                    return True
        return False

    def _known(self, sequence: Sequence) -> Node | None:
        """The longest run of the cache that it begins with; what somebody at work has read of it goes there first."""
        ids, limit = sequence.tokens(0, sequence.length), sequence.length - 1
        known = self.memory.prefixes.match(sequence.sharing, ids, limit)
        if limit < LEAST:
            return known
        alike = [other for other in self.running if other.sharing == sequence.sharing]
        shared = [min(shared_length(other.prompt, ids), other.held, limit) for other in alike]
        longest = max(shared, default=0)
        if longest >= (0 if known is None else known.end) + LEAST:
            known = self._keep(alike[shared.index(longest)], longest) or known
        if known is not None:
            with kept(known):
                for other, common in zip(alike, shared):
                    self._lean(other, known, common)
        return known

    def _lean(self, other: Sequence, known: Node, common: int) -> None:
        """Let a running sequence read from the cache what it has of the first `common` tokens of `known` in its row."""
        common = min(common, known.end)
        if common < other.base + LEAST:
            return
        node = self.memory.prefixes.match(other.sharing, other.tokens(0, common), common)
        if node is not None and node.end >= other.base + LEAST:
            self.memory.lean(other, node, _room(other, node.end))

    def _keep(self, sequence: Sequence, end: int) -> Node | None:
        """Put the first `end` tokens of a running sequence into the cache where they are not, if there is room.

        Returns the last run that was put there.
        """
        memory = self.memory
        if end - sequence.base < LEAST:
            return None
        ids = sequence.tokens(0, end)
        parent, missing = memory.prefixes.missing(sequence.sharing, ids)
        begin = end - missing
        if missing < LEAST or begin < sequence.base or not memory.room_beside(parent, missing):
            return None
        return memory.prefixes.insert(sequence.sharing, ids, parent, memory.copy_of(sequence, begin, end))

    def _sample(self, sequences: list[Sequence], hidden: torch.Tensor) -> None:
        if self.alone:
            hidden = F.pad(hidden, (0, 0, 0, -len(hidden) % self._alike))
        for rows, logits in self.runner.logits(hidden):
            chunk = sequences[rows]
            for sequence, drawn in zip(chunk, draw(logits[: len(chunk)].float(), [s.next_draw for s in chunk])):
                sequence.append(drawn)
        for sequence in sequences:
            if sequence.ended is not None:
                self.running.remove(sequence)
                if not self.alone:
                    self._keep(sequence, sequence.held)
                self.memory.release(sequence)
            sequence.report()


def _room(sequence: Sequence, base: int) -> int:
    """Tokens that the row of `sequence` is to hold where the first `base` are elsewhere."""
    own = sequence.length - base
    return min(own + AHEAD, max(sequence.room - base, own))


def _place(sequence: Sequence) -> tuple[int, int]:
    """Row by row, class by class: what stands side by side in the cache does so in the forward."""
    assert sequence.slots is not None
    return sequence.slots.length, sequence.row


def _order(sequence: Sequence) -> tuple[int, int]:
    return -sequence.request.priority, sequence.arrival
