"""What the policy is held to: log-probs of a frozen model, or of the policy itself as it was earlier.

An earlier policy needs no model of its own: all that a round will ask is computed before its first step, while those
weights stand in the module, or stand in it again for that long. Knows nothing about losses.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from maypole.core.atomic import fsync_directory, fsync_file, fsync_tree, write_atomic
from maypole.core.errors import ArtifactError, UserError
from maypole.core.identity import cache_dir, digest
from maypole.core.manifest import versions
from maypole.core.progress import tell
from maypole.models.adapters import snapshot
from maypole.models.attention import packed_execution
from maypole.models.forward import packed_hidden, self_test
from maypole.models.language_model import FOLLOW, LanguageModel
from maypole.models.packing import documents
from maypole.models.saving import save_adapter
from maypole.train.batch import PackedBatch, pack
from maypole.train.config import TrainConfig
from maypole.train.precision import Arithmetic, autocast
from maypole.train.ranks import Ranks
from maypole.train.source import Work
from maypole.train.step import logprobs_of
from maypole.train.trainable import keep_trainable, standing_as

Earlier = Literal["initial", "previous"]
"""The policy before its first step, or when the round began."""


class ReferenceLogps:
    """Log-probs of a frozen model on the scored tokens; with a `folder` each is computed once and kept there.

    What is known when the run is over goes into the cache, for other runs on the same tokens with the same reference.
    """

    def __init__(self, lm: LanguageModel, arithmetic: Arithmetic, folder: Path | None) -> None:
        self.lm, self._folder = lm, folder
        self._fingerprint = lm.fingerprint
        self._arithmetic: Arithmetic = arithmetic
        self._files: dict[str, np.memmap] = {}

    def begin(self, round: int, works: Iterable[Work]) -> None:
        """A round begins, and these are its steps."""
        self._files.clear()

    def __call__(self, batch: PackedBatch, work: Work) -> torch.Tensor:
        """(N,) fp32, for a batch of `work`."""
        known = self._known(batch, work)
        return self._computed(batch, work) if known is None else known

    def _known(self, batch: PackedBatch, work: Work) -> torch.Tensor | None:
        if self._folder is None:
            return None
        values = np.array(self._file(self._folder, work)[batch.token])
        return None if np.isnan(values).any() else torch.from_numpy(values).to(batch.weights.device)

    def _computed(self, batch: PackedBatch, work: Work) -> torch.Tensor:
        logps = self._compute(batch)
        if self._folder is not None:
            self._file(self._folder, work)[batch.token] = logps.cpu().numpy()
        return logps

    @torch.no_grad()
    def _compute(self, batch: PackedBatch) -> torch.Tensor:
        with self.lm.active() as model:
            training = model.training
            model.eval()
            with packed_execution(model), autocast(self._arithmetic, batch.weights.device):
                hidden = packed_hidden(model, batch.input_ids, batch.plan).index_select(0, batch.source)
                logps = logprobs_of(model, hidden, batch)
            model.train(training)
        return logps

    def _file(self, folder: Path, work: Work) -> np.memmap:
        """(T,) of the store's tokens, NaN where not yet known; what an earlier run computed is read again."""
        if work.name not in self._files:
            path, count = folder / f"reference-{work.name}.f32", max(work.store.tokens, 1)
            if not path.is_file():
                part = path.with_suffix(f".{os.getpid()}.tmp")
                self._remembered(work, count).tofile(part)
                with suppress(FileExistsError):  # another process of this run was faster; what it knows stays
                    os.link(part, path)
                part.unlink()
            self._files[work.name] = np.memmap(path, dtype=np.float32, mode="r+", shape=(count,))
        return self._files[work.name]

    def _remembered(self, work: Work, count: int) -> np.ndarray:
        """What the cache knows of the `count` tokens of the store, NaN elsewhere."""
        place = self._place(work)
        values = np.fromfile(place, dtype=np.float32) if place is not None and place.is_file() else np.zeros(0)
        return values if len(values) == count else np.full(count, np.nan, dtype=np.float32)

    def publish(self, works: Iterable[Work]) -> None:
        """Let other runs find what this one knows of the stores of `works`."""
        for work in works if self._folder is not None else ():
            place = self._place(work)
            if place is not None and work.name in self._files:
                known = np.array(self._files[work.name])
                write_atomic(place, np.where(np.isnan(known), self._remembered(work, len(known)), known).tobytes())

    def _place(self, work: Work) -> Path | None:
        """In the cache, for one reference in one arithmetic of the same libraries on the same tokens; None for a model
        that nobody knows."""
        if self._fingerprint is None:
            return None
        arithmetic = self._arithmetic, self.lm.device.type, repr(versions())
        key = digest(self._fingerprint, *arithmetic, work.store.digest())
        return cache_dir("reference") / f"{key}.f32"


class EarlierPolicy(ReferenceLogps):
    """Log-probs of the policy `lm` as it was before its first step ("initial") or when the round began ("previous").

    What a round will ask is computed when it begins and lies in `folder` before its first step; afterwards it could
    not be computed any more. `rounds`, where there are several, is the folder of their folders: an adapter that is the
    reference from a round on is kept there.
    """

    def __init__(
        self,
        lm: LanguageModel,
        which: Earlier,
        arithmetic: Arithmetic,
        folder: Path,
        *,
        rounds: Path | None,
        ranks: Ranks,
        evaluation: Work | None,
    ) -> None:
        super().__init__(lm, arithmetic, folder)
        self._which, self._kept, self._rounds, self._ranks = which, folder, rounds, ranks
        self._evaluation = evaluation

    def begin(self, round: int, works: Iterable[Work]) -> None:
        super().begin(round, works)
        if self._rounds is not None and (round == 0 or self._which == "previous"):
            self._ranks.lead(lambda: self._keep(round))
        with self._standing(round):
            for done, work in enumerate(works, start=1):
                self._compute_all(work)
                tell(reference=f"{done:,} steps")
            if round == 0 and self._evaluation is not None:
                self._compute_all(self._evaluation)
        for name, file in self._files.items():
            file.flush()
            fsync_file(self._kept / f"reference-{name}.f32")
        fsync_directory(self._kept)

    def __call__(self, batch: PackedBatch, work: Work) -> torch.Tensor:
        known = self._known(batch, work)
        if known is None:
            what = f"the {self._which} policy's log-probs of {work.name} are gone, and so is that policy"
            raise ArtifactError(what, str(self._kept), "begin again with --force")
        return known

    def _place(self, work: Work) -> Path | None:
        return super()._place(work) if self._which == "initial" or work.round == 0 else None

    def _compute_all(self, work: Work) -> None:
        for rows in work.batches:
            batch = pack(work.store, rows, self.lm.device)
            if self._known(batch, work) is None:
                self._computed(batch, work)

    def _keep(self, round: int) -> None:
        if self._which == "initial":
            keep_trainable(self.lm.model, self._kept / "initial")
        if self.lm.adapters and self._rounds is not None:
            target = self._rounds / f"{round:03}" / "reference"
            if not target.is_dir():
                part = target.with_suffix(".tmp")
                save_adapter(self.lm, part)
                fsync_tree(part)
                part.rename(target)
                fsync_directory(target.parent)

    def _standing(self, round: int) -> AbstractContextManager[None]:
        """The reference's weights stand in the module: they do by themselves, or are put there for a while."""
        if self._which == "previous" or round == 0:
            return nullcontext()
        return standing_as(self.lm, self._kept / "initial", aside=self._kept / f"aside-{self._ranks.rank}")


@contextmanager
def settled(
    reference: LanguageModel | Earlier | None,
    before: LanguageModel,
    lm: LanguageModel,
    config: TrainConfig,
    rounds: int,
) -> Iterator[LanguageModel | Earlier | None]:
    """The reference now that the weights that learn were chosen: `lm` is what `before` has become.

    A new adapter that does nothing yet need only be left out to have the policy's start. One that learns on is, live,
    held to a frozen copy of itself, which leaves the module afterwards.
    """
    live = config.reference_logps == "live"
    if reference == "initial" and lm.adapters and (live or rounds == 1):
        without = replace(before, model=lm.model, adapter=None)
        if config.peft is not None and torch.equal(*map(_sample, (without, lm))):
            yield without
            return
        if live:
            copy = snapshot(lm, "reference")
            try:
                yield copy
            finally:
                lm.model.delete_adapter("reference")
            return
    if isinstance(reference, LanguageModel) and reference.model is before.model:
        reference = replace(reference, model=lm.model)  # or the new adapter would be on in it
    yield reference


@torch.no_grad()
def _sample(lm: LanguageModel) -> torch.Tensor:
    """What the model makes of a few tokens."""
    ids = torch.arange(8, device=lm.device)
    with lm.active() as model, packed_execution(model):
        return packed_hidden(model, ids, documents([len(ids)]).to(lm.device))


def self_test_apart(reference: LanguageModel | Earlier | None, lm: LanguageModel) -> None:
    """`self_test`, of a reference that is a model of its own: which also has its weights read from the disk, so that
    the memory they take is seen before anything is decided by it."""
    if isinstance(reference, LanguageModel) and reference.transformer is not lm.transformer:
        self_test(reference.model)


def check_view(reference: LanguageModel, lm: LanguageModel, config: TrainConfig) -> None:
    """UserError where `reference` is a view of the module of `lm` that is not frozen, or that will be gone."""
    if reference.transformer is not lm.transformer:
        return
    learns_on = config.peft is None and (not lm.adapters or reference.adapter in (FOLLOW, *_active(lm)))
    if learns_on or reference.adapter == FOLLOW:
        expected = '"initial": the policy as it is before its first step'
        raise UserError("it is the model that learns", "reference", expected)
    if config.peft is not None and lm.adapters:
        what = "the adapter is merged to make room for the new one, and this view of the base is without it"
        raise UserError(what, "reference", '"initial", or a model that is loaded apart')


def _active(lm: LanguageModel) -> list[str]:
    return list(lm.model.base_model.active_adapters) if lm.adapter == FOLLOW else [str(lm.adapter)]
