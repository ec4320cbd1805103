"""One completion in the making, from its prompt to its Output. Computes nothing."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from maypole.engine.adapters import Adapter
from maypole.engine.detokenizer import Detokenizer
from maypole.engine.grammar import Follower
from maypole.engine.kv_memory import Slots
from maypole.engine.prefix_cache import Node
from maypole.engine.prefix_tree import Ids
from maypole.engine.request import Chunk, FinishReason, Output, Request, Sampling, Target, Usage
from maypole.engine.sampling import Draw, Drawn, sample_seed


def always() -> bool:
    """Whoever listens wants everything as it comes."""
    return True


def never() -> bool:
    """Whoever listens waits for the end."""
    return False


@dataclass(slots=True, eq=False)
class Sequence:
    """Sample `index` of a request.

    `limit` is how many tokens it may generate, `target` the adapter asked for (None: the base); adapter and version are
    bound when it starts. `listener` is told the end, and while it is `attentive` what came since it was last told
    (`told` tokens so far). `ended` is set by whoever gives it up early. The cache holds its first `held` tokens: those
    before `base` in prefixes shared with others, the rest in a row of its own (`kv_memory.Holder`).
    """

    request: Request
    index: int
    prompt: Ids
    limit: int
    target: Target | None
    ends: frozenset[int]
    text: Detokenizer
    listener: Callable[["Sequence", Chunk], None] | None = None
    attentive: Callable[[], bool] = always
    grammar: Follower | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    arrival: int = 0
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    node: Node | None = None
    slots: Slots | None = None
    row: int = -1
    base: int = 0
    held: int = 0
    adapter: Adapter | None = None
    version: int = 0
    cached: int = 0
    ended: FinishReason | None = None
    stop_reason: str | int | None = None
    error: BaseException | None = None
    output: Output | None = None
    told: int = 0

    @property
    def sampling(self) -> Sampling:
        return self.request.sampling

    @property
    def done(self) -> bool:
        return self.output is not None or self.error is not None

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        timeout = self.request.timeout
        return timeout is not None and now - self.submitted >= timeout

    @property
    def length(self) -> int:
        """Tokens so far, of prompt and completion."""
        return len(self.prompt) + len(self.generated)

    def tokens(self, begin: int, end: int) -> Ids:
        """Some of them."""
        n = len(self.prompt)
        if end <= n:
            return self.prompt[begin:end]
        late = np.array(self.generated[max(begin - n, 0) : end - n], dtype=np.int64)
        return late if begin >= n else np.concatenate([self.prompt[begin:], late])

    @property
    def room(self) -> int:
        """Tokens that the cache has to hold at most."""
        return len(self.prompt) + max(self.limit - 1, 0)

    @property
    def sharing(self) -> tuple[object, object]:
        """Tokens of two sequences mean the same only where this is equal."""
        return None if self.adapter is None else self.adapter.key, self.request.cache_salt

    @property
    def next_draw(self) -> Draw:
        """What the next token depends on besides its logits."""
        s = self.sampling
        early = len(self.generated) < s.min_tokens
        forbidden = (self.ends | set(s.stop_token_ids)) if early else ()
        seed = sample_seed(s.seed, self.index)
        return Draw(
            s, seed, self.prompt.tolist() if s.repetition_penalty != 1.0 else (), self.generated, tuple(forbidden),
            None if self.grammar is None else self.grammar.allowed(),
        )  # fmt: skip

    def append(self, drawn: Drawn) -> None:
        """Take a sampled token; sets `ended` when it was the last."""
        s, token = self.sampling, drawn.token
        self.generated.append(token)
        self.logprobs.append(drawn.logprob)
        if drawn.top is not None:
            self.top.append(drawn.top)
        at_stop_id = token in s.stop_token_ids
        complete = self.grammar is not None and self.grammar.take(token)
        if at_stop_id or (token in self.ends and not s.ignore_eos):
            self.ended, self.stop_reason = "stop", token if at_stop_id else None
        elif s.stop and self.text.push(token) and len(self.generated) > s.min_tokens:
            self.ended, self.stop_reason = "stop", self.text.stopped_by
        elif complete:
            self.ended = "stop"
        elif len(self.generated) >= self.limit:
            self.ended = "length"

    def report(self) -> None:
        """Tell the listener what is new, if it wants to know, and the whole where this was the end."""
        if self.ended is not None and self.output is None:
            self._finish()
        if self.listener is None or not (self.done or self.attentive()):
            return
        if self.output is None:
            self._catch_up(len(self.generated))
        piece = self.text.finish() if self.output is not None else self.text.take()
        new = slice(self.told, None)
        top = self.top[new] if self.sampling.logprobs is not None else None
        self.told = len(self.generated)
        self.listener(self, Chunk(piece, self.generated[new], self.logprobs[new], self.index, self.output, top))

    def _catch_up(self, tokens: int) -> None:
        """Have the text of the first so many tokens; with stop strings it never lags behind."""
        if not self.sampling.stop:
            for token in self.generated[len(self.text.ids) : tokens]:
                self.text.push(token)

    def _finish(self) -> None:
        assert self.ended is not None
        last = self.generated[-1:] if self.ended == "stop" else []
        by_token = any(token in self.ends or token in self.sampling.stop_token_ids for token in last)
        said = len(self.generated) - by_token
        if self.text.ids:
            self._catch_up(said)
        elif not self.sampling.stop:  # nobody has seen any of it
            self.text.ids = self.generated[:said]
        emitted = self.text.emitted
        self.text.finish()
        self.text.emitted = emitted
        self.output = Output(
            text=self.text.text,
            token_ids=self.generated,
            logprobs=self.logprobs,
            finish_reason=self.ended,
            usage=Usage(len(self.prompt), len(self.generated), self.cached),
            version=self.version,
            request=self.request,
            index=self.index,
            top_logprobs=self.top if self.sampling.logprobs is not None else None,
            stop_reason=self.stop_reason or self.text.stopped_by,
            queued=(time.monotonic() if self.started is None else self.started) - self.submitted,
        )


def cancel(sequences: Iterable[Sequence]) -> None:
    """End what still runs; the next step frees its row."""
    for sequence in sequences:
        if not sequence.done and sequence.ended is None:
            sequence.ended = "cancelled"


def result(sequence: Sequence) -> Output:
    """The output of a sequence that is done, or its error raised."""
    if sequence.error is not None:
        raise sequence.error
    assert sequence.output is not None
    return sequence.output
