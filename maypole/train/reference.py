"""What the policy is held to: log-probs of a frozen model, or of the policy itself as it was earlier.

An earlier policy needs no model of its own: all that a round will ask is computed before its first step, while those
weights stand in the module, or stand in it again for that long. Knows nothing about losses.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from maypole.core.atomic import fsync_directory, fsync_file, fsync_tree
from maypole.core.errors import ArtifactError
from maypole.models.attention import packed_execution
from maypole.models.forward import packed_hidden
from maypole.models.language_model import LanguageModel
from maypole.models.saving import save_adapter
from maypole.train.batch import PackedBatch, pack
from maypole.train.precision import Arithmetic, autocast
from maypole.train.ranks import Ranks
from maypole.train.source import Work
from maypole.train.step import logprobs_of
from maypole.train.trainable import keep_trainable, standing_as

Earlier = Literal["initial", "previous"]
"""The policy before its first step, or when the round began."""


class ReferenceLogps:
    """Log-probs of a frozen model on the scored tokens; with a `folder` each is computed once and kept there."""

    def __init__(self, lm: LanguageModel, arithmetic: Arithmetic, folder: Path | None) -> None:
        self.lm, self._folder = lm, folder
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
            path, shape = folder / f"reference-{work.name}.f32", (max(work.store.tokens, 1),)
            if not path.is_file():
                part = path.with_suffix(f".{os.getpid()}.tmp")
                np.full(shape, np.nan, dtype=np.float32).tofile(part)
                with suppress(FileExistsError):  # another process of this run was faster; what it knows stays
                    os.link(part, path)
                part.unlink()
            self._files[work.name] = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        return self._files[work.name]


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
            for work in works:
                self._compute_all(work)
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

    def _compute_all(self, work: Work) -> None:
        for rows in work.batches:
            batch = pack(work.store, rows).to(self.lm.device)
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
