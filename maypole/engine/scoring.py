"""Log-probs of given continuations: prompts and what they share computed once, the head on scored positions only.

Nothing is sampled. Knows nothing about threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maypole.engine.adapters import Adapter
from maypole.engine.prefix_tree import Ids, neighbours
from maypole.engine.request import Scored
from maypole.engine.runner import Runner


@dataclass(frozen=True, slots=True)
class Scoring:
    """One sequence whose tokens from `start` on are scored; `start` is at least 1."""

    ids: Ids
    start: int
    adapter: Adapter | None

    @property
    def inputs(self) -> Ids:
        """The last token is predicted, never read."""
        return self.ids[:-1]


def score(
    items: Sequence[Scoring], runner: Runner, max_batch_tokens: int, each: Callable[[Callable[[], None]], None]
) -> list[Scored]:
    """One Scored per item, in order; `each` runs every batch's forward (under the engine's lock)."""
    results: list[Scored | None] = [None] * len(items)
    for i, item in enumerate(items):
        if item.start >= len(item.ids):
            results[i] = Scored([], 0.0, True, [])
    open_ = [i for i, result in enumerate(results) if result is None]
    inputs, adapters = [items[i].inputs for i in open_], [id(items[i].adapter) for i in open_]
    for places in neighbours(inputs, adapters, max_batch_tokens):
        batch = [open_[place] for place in places]

        def run(batch: list[int] = batch) -> None:
            for i, scored in zip(batch, _score_batch([items[i] for i in batch], runner)):
                results[i] = scored

        each(run)
    return [r for r in results if r is not None]


def _score_batch(items: Sequence[Scoring], runner: Runner) -> list[Scored]:
    adapters = [item.adapter for item in items]
    tree = runner.tree([item.inputs for item in items], adapters)
    slots = np.concatenate([path[item.start - 1 :] for path, item in zip(tree.paths, items)])
    targets = np.concatenate([item.ids[item.start :] for item in items])
    # A slot that several continuations follow needs its logits once.
    needed, place = np.unique(slots, return_inverse=True)
    hidden = runner.read(tree, adapters, wanted=needed)
    by_slot = np.argsort(place, kind="stable")
    logps, top = np.empty(len(slots), dtype=np.float32), np.empty(len(slots), dtype=bool)
    best_ids, best_logps = np.empty(len(slots), dtype=np.int64), np.empty(len(slots), dtype=np.float32)
    sorted_place = place[by_slot]
    for rows, logits in runner.logits(hidden):
        pairs = by_slot[np.searchsorted(sorted_place, rows.start) : np.searchsorted(sorted_place, rows.stop)]
        row = torch.from_numpy(place[pairs] - rows.start).to(logits.device)
        target = torch.from_numpy(targets[pairs]).to(logits.device)
        values = logits[row, target]
        norm, (best, first) = torch.logsumexp(logits, dim=-1), logits.max(dim=-1)
        logps[pairs] = (values - norm[row]).float().cpu().numpy()
        greedy = values >= best[row]
        top[pairs] = greedy.cpu().numpy()
        best_ids[pairs] = torch.where(greedy, target, first[row]).cpu().numpy()
        best_logps[pairs] = (best - norm)[row].float().cpu().numpy()
    out: list[Scored] = []
    at = 0
    for item in items:
        n = len(item.ids) - item.start
        mine = logps[at : at + n]
        total = float(mine.sum(dtype=np.float64))
        best = list(zip(best_ids[at : at + n].tolist(), best_logps[at : at + n].tolist()))
        out.append(Scored(mine.tolist(), total, bool(top[at : at + n].all()), item.ids[item.start :].tolist(), best))
        at += n
    return out
