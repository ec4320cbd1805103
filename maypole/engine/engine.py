"""All inference: generate, stream, score, embed, classify over one model and its adapters, exact and thread-safe.

Whoever waits for a result steps the shared queue under one lock, so calls from many threads run in one batch; streams
are stepped by a worker thread that lives while there is work. Knows nothing about training or methods.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from maypole.core.errors import UnsupportedCapability, UserError
from maypole.engine import embedding, scoring, updating
from maypole.engine.adapter_files import Base, Limits
from maypole.engine.adapter_store import AdapterStore, Engaged
from maypole.engine.adapters import Adapter
from maypole.engine.intake import Intake, Listener
from maypole.engine.mailbox import Mailbox, call_in
from maypole.engine.private_copy import overwrite
from maypole.engine.request import Chunk, Output, Prompt, Request, Scored, ScoreRequest, Target
from maypole.engine.runner import Runner
from maypole.engine.scheduler import Scheduler
from maypole.engine.sequence import Sequence as Running
from maypole.engine.sequence import always, cancel, never, result
from maypole.engine.settings import EngineConfig
from maypole.engine.worker import Bell, Turnstile, Worker
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load

if TYPE_CHECKING:
    from maypole.engine.remote import RemoteEngine


class Engine:
    """Inference over `lm`, whose module is never changed: its Parameters are shared, its adapters copied.

    Requests with ``adapter=None`` run the view that `lm` is: its active adapter, or none. An engine made by `load` has
    its model to itself: weights move into the layout that multiplies faster instead of being copied, and the module is
    good for its `state_dict()` only.

    Examples
    --------
    >>> engine = Engine.load("path-or-id")
    >>> engine.generate([Request("Once", Sampling(max_tokens=8, temperature=0))])[0].text
    """

    def __init__(self, lm: LanguageModel, config: EngineConfig | None = None) -> None:
        self._begin(lm, config, owns=False)

    def _begin(self, lm: LanguageModel, config: EngineConfig | None, *, owns: bool) -> None:
        self.config = config or EngineConfig()
        self._lock, self._bell = Turnstile(), Bell()
        self._worker = Worker(self._lock, self._bell, lambda: self._generator().busy, self._step)
        self._scheduler: Scheduler | None = None
        self.adapters = AdapterStore(self.config.adapters, self._engaged())
        self._take(lm, owns=owns)

    @classmethod
    def load(
        cls,
        model_name_or_path: str | Path,
        *,
        config: EngineConfig | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> "Engine":
        """An engine with weights of its own. `options` are those of `models.load`, `adapters` are name -> directory."""
        engine = cls.__new__(cls)
        engine._begin(load(model_name_or_path, **options), config, owns=True)
        for name, directory in (adapters or {}).items():
            engine.update(directory, name)
        return engine

    @staticmethod
    def connect(url: str, **options: Any) -> "RemoteEngine":
        """An engine behind an OpenAI-compatible URL; options as for `RemoteEngine`."""
        from maypole.engine.remote import RemoteEngine

        return RemoteEngine(url, **options)

    @property
    def capabilities(self) -> frozenset[str]:
        """What this engine can do: generate, stream, structured, score, embed, classify, adapters."""
        return self._runner.capabilities

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that prompt and completion may have together."""
        return self.lm.max_length

    @property
    def version(self) -> int:
        """How many times weights were new: the base's, or an adapter's."""
        return self.adapters.updates

    @property
    def alive(self) -> bool:
        """Whether submitted requests will be stepped; False for good once a step died of more than an error."""
        return self._worker.alive

    @property
    def silent(self) -> float:
        """Seconds since the last step of what async calls submitted; 0 where nothing is left to do."""
        return self._worker.silent

    def on_step(self, told: Callable[[float], None]) -> None:
        """From now on call `told` with the seconds of each step of what async calls submit."""
        self._worker.on_step = told

    def encode(self, prompt: Prompt | Request) -> list[int]:
        """The ids that a request, or one with this prompt, starts from."""
        request = prompt if isinstance(prompt, Request) else Request(prompt)
        return self._intake.encode(request, 0).tolist()

    def stats(self) -> dict[str, int]:
        """The scheduler's numbers, and the bytes of repacked weights; all 0 before the first request."""
        idle = dict.fromkeys(Scheduler.STATS, 0)
        return (self._scheduler.stats() if self._scheduler else idle) | {"repacked_bytes": self._runner.repacked_bytes}

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Completions in the order of the requests; one with n > 1 gives its n outputs one after the other.

        Every request is checked before anything runs.
        """
        sequences = self._sequences(requests)
        scheduler = self._generator()
        scheduler.submit(sequences)
        try:
            while not all(s.done for s in sequences):
                heard = self._bell.count
                with self._lock:
                    did = all(s.done for s in sequences) or self._step()
                if not did:
                    self._bell.rest(heard)
        finally:
            self._abandon(sequences)
        return [result(s) for s in sequences]

    async def agenerate(self, requests: Sequence[Request]) -> list[Output]:
        """`generate` that leaves the event loop free; cancelling it ends its sequences."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        sequences = await asyncio.to_thread(self._sequences, requests, lambda *_: call_in(loop, ended.set), never)
        try:
            self._start(sequences)
            while not all(s.done for s in sequences):
                ended.clear()
                if not all(s.done for s in sequences):
                    await ended.wait()
        finally:
            cancel(sequences)
        return [result(s) for s in sequences]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Chunks as they are certain; leaving the iteration early ends the request and frees its rows."""
        async with aclosing(self.streams([request])) as turns:
            async for turn in turns:
                for _, chunk in turn:
                    yield chunk

    async def streams(
        self, requests: Sequence[Request], *, attentive: Callable[[], bool] = always
    ) -> AsyncGenerator[list[tuple[int, Chunk]], None]:
        """Several streams as one: at every turn all chunks that came since the last, each with its request's place.

        `attentive` is asked at every token, in the engine's thread: while it is False, chunks wait and become one.
        """
        mailbox: Mailbox[tuple[Running, Chunk]] = Mailbox(asyncio.get_running_loop())
        sequences = await asyncio.to_thread(self._sequences, requests, lambda *come: mailbox.put(come), attentive)
        places = [i for i, request in enumerate(requests) for _ in range(request.sampling.n)]
        place, left = dict(zip(map(id, sequences), places)), len(sequences)
        try:
            self._start(sequences)
            while left:
                turn: list[tuple[int, Chunk]] = []
                for sequence, chunk in await mailbox.arrived():
                    if sequence.error is not None:
                        raise sequence.error
                    left -= chunk.output is not None
                    if chunk.text or chunk.token_ids or chunk.output is not None:
                        turn.append((place[id(sequence)], chunk))
                if turn:
                    yield turn
        finally:
            cancel(sequences)

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Scored]]:
        """log p of each continuation, per request and in order; what prompts share is computed once."""
        self._need("score")
        items: list[scoring.Scoring] = []
        counts: list[int] = []
        adapters = self._adapters_of([request.adapter for request in requests])
        for i, (request, adapter) in enumerate(zip(requests, adapters)):
            found = self._intake.scored(request, i)
            counts.append(len(found))
            items += [scoring.Scoring(ids, start, adapter) for ids, start in found]
        scored = iter(scoring.score(items, self._runner, self._bounds.max_batch_tokens, self._locked))
        return [[next(scored) for _ in range(count)] for count in counts]

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        pooling: embedding.Pooling = "last",
        layer: int = -1,
        normalize: bool = True,
        adapter: Target | None = None,
        truncate: bool = False,
    ) -> np.ndarray:
        """(n, d) vectors in fp32, of unit length if `normalize`.

        `pooling` takes the last token, the mean over tokens or the first ("cls"); `layer` counts as transformers'
        hidden_states do. What does not fit is an error, or cut on the right with `truncate`.
        """
        if pooling not in ("last", "mean", "cls"):
            raise UserError(f"no pooling {pooling!r}", "pooling", "last, mean or cls")
        ids = [self._intake.text(text, i, truncate=truncate) for i, text in enumerate(texts)]
        return embedding.embed(
            ids, self._runner, self._adapters_of([adapter])[0], pooling=pooling, layer=layer, normalize=normalize,
            max_batch_tokens=self._bounds.max_batch_tokens, each=self._locked,
        )  # fmt: skip

    def classify(self, requests: Sequence[Request]) -> np.ndarray:
        """(n, num_labels) scores of a sequence classifier (``load(..., task="score")``) in fp32."""
        self._need("classify")
        ids = [self._intake.prompt(r, i) for i, r in enumerate(requests)]
        adapters = self._adapters_of([r.adapter for r in requests])
        return embedding.classify(ids, adapters, self._runner, self._bounds.max_batch_tokens, self._locked)

    def update(self, source: Any, adapter: str | None = None, *, mode: Literal["finish", "abort"] = "finish") -> int:
        """Take new weights and return their version.

        `source` is a LanguageModel, a PEFT or transformers model, a state dict or a directory. With a name, that
        adapter is replaced or added, its tensors copied. With None the base is, and the adapters that come with it.
        Running requests of what changes finish on the old weights first, or end with "update" (mode "abort", and
        always where their weights have been changed in place).
        """
        if adapter is None:
            with self._lock:
                self._settle(None, abort=mode == "abort" or self._seen not in (None, self.lm.base_version))
                self._take_from(source)
                return self.adapters.base_changed()
        while True:
            runner, made = self._runner, self._adapter_from(source, adapter)  # beside what runs
            with self._lock:
                if runner is self._runner:  # else it was made for another base
                    self._settle(adapter, abort=mode == "abort")
                    return self.adapters.put(adapter, made)

    def close(self) -> None:
        """End everything and free the cache; the engine may be used again."""
        with self._lock:
            if self._scheduler is not None:
                self._scheduler.end(self._scheduler.everything)
                self._scheduler.memory.free()

    def _settle(self, target: str | None, *, abort: bool) -> None:
        if self._scheduler is not None:
            updating.settle(self._scheduler, target, self._step, abort=abort)

    def _adapter_from(self, source: Any, name: str) -> Adapter:
        base, limits = Base(self._runner.module, self.lm.name), Limits.of(self.config.adapters)
        return updating.adapter_from(source, name, base, limits, self.adapters.loaded(name))

    def _take_from(self, source: Any) -> None:
        """Make `source` the base; a state dict is written into a module of the engine's own."""
        lm, replaced = updating.base_from(source, self.lm)
        if replaced is None:
            self._take(lm, owns=isinstance(source, str | Path))
        elif not self._owns:
            self._take(lm, replaced)
        else:
            self._runner.unpack()
            try:
                overwrite(lm.model, replaced)
            except UserError:
                self._runner.repack(self._bounds.repack_bytes, lm.model)
                raise
            lm.fingerprint = None
            self._take(lm, owns=True)

    def _take(self, lm: LanguageModel, replaced: dict[str, torch.Tensor] | None = None, *, owns: bool = False) -> None:
        """Make `lm` the base; its adapters replace those of the same name."""
        self._bounds = self.config.resolved(next(lm.model.parameters()).device)
        runner = Runner(lm.model, replaced, fast_path=self.config.fast_path)
        adapters = updating.adapters_of(lm, runner)
        runner.repack(self._bounds.repack_bytes, lm.model if owns else None)
        self.lm, self._runner, self._owns = lm, runner, owns
        self.adapters.aim(Base(runner.module, lm.name), adapters)
        self._default = updating.default_adapter(lm)
        self._seen = lm.base_version if replaced is None else None
        self._intake = Intake(lm, runner.vocabulary, decoder=runner.packed)
        if self._scheduler is not None:  # whoever waits in it is served by the new weights
            self._scheduler.runner, self._scheduler.bounds = runner, self._bounds
            self._scheduler.memory = runner.cache(self.config.kv_dtype, self._bounds.kv_bytes)

    def _generator(self) -> Scheduler:
        """The scheduler, made when first needed."""
        if self._scheduler is not None:
            return self._scheduler
        with self._lock:
            if self._scheduler is None:
                memory = self._runner.cache(self.config.kv_dtype, self._bounds.kv_bytes)
                alone = self.config.deterministic
                self._scheduler = Scheduler(self._runner, memory, self._bounds, self.adapters, alone=alone)
            return self._scheduler

    def _sequences(
        self, requests: Sequence[Request], listener: Listener | None = None, attentive: Callable[[], bool] = never
    ) -> list[Running]:
        self._need("generate")
        scheduler = self._generator()
        made: list[Running] = []
        for i, request in enumerate(requests):
            target = self._target(request.adapter)
            if target is not None:
                self._need("adapters")
                self.adapters.ask(target, f"request {i}")
            made += self._intake.sequences(request, i, target, listener, attentive)
        for sequence in made:
            scheduler.check_fits(len(sequence.prompt), sequence.room)
        return made

    def _target(self, asked: Target | None) -> Target | None:
        return self._default if asked is None else asked or None

    def _adapters_of(self, asked: Sequence[Target | None]) -> list[Adapter | None]:
        """The adapters themselves, each looked up once: a call has one version of it."""
        targets = [self._target(one) for one in asked]
        found: dict[Target | None, Adapter | None] = {None: None}
        for i, target in enumerate(targets):
            if target is not None and target not in found:
                self._need("adapters")
                found[target] = self.adapters.now(target, f"request {i}")
        return [found[target] for target in targets]

    def _engaged(self) -> Engaged:
        """What the store of adapters needs of the engine."""

        def cancel_those_of(target: Target) -> None:
            if (scheduler := self._scheduler) is not None:
                scheduler.end([s for s in scheduler.everything if s.target == target])

        return Engaged(
            self._lock,
            wanted=lambda: self._scheduler.wanted() if self._scheduler is not None else (),
            in_use=lambda: self._scheduler.in_use() if self._scheduler is not None else (),
            forget=lambda adapter: self._runner.lanes.forget(adapter),
            cancel=cancel_those_of,
            wake=self._bell.ring,
        )

    def _need(self, capability: str) -> None:
        if capability not in self.capabilities:
            family = self._runner.module.config.model_type
            raise UnsupportedCapability(f"{family!r} loaded this way cannot {capability}", self.lm.name)

    def _check_base(self) -> None:
        if self._seen not in (None, self.lm.base_version):
            what = "the base weights changed since this engine took them"
            raise UserError(what, self.lm.name, "engine.update(lm) first")

    def _locked(self, run: Callable[[], None]) -> None:
        with self._lock:
            self._check_base()
            run()

    def _step(self) -> bool:
        """One step of the queue; an error is given to every sequence in it. The lock is held.

        False where there was nothing to do before an adapter is loaded.
        """
        scheduler = self._generator()
        try:
            self._check_base()
            return scheduler.step()
        except BaseException as error:
            scheduler.fail(error)
            if not isinstance(error, Exception):
                raise
        return True

    def _start(self, sequences: list[Running]) -> None:
        scheduler = self._generator()
        self._worker.submit(lambda: scheduler.submit(sequences))

    def _abandon(self, sequences: list[Running]) -> None:
        """Let go of what an interrupted call left behind."""
        if not all(s.done for s in sequences):
            cancel(sequences)
            with self._lock:
                self._generator().sweep()
