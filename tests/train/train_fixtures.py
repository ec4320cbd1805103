"""Rows, stub objectives and the plain computation that packed training must agree with."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from maypole.core.identity import digest
from maypole.data.chat import Dropped
from maypole.data.rows import RowType
from maypole.models.attention import packed_execution
from maypole.models.language_model import LanguageModel
from maypole.train import Loss, Objective, Segment, TokenBatch, TrainConfig
from maypole.train.batch import pack
from maypole.train.objective import Need
from maypole.train.step import loss_of
from maypole.train.tokens import TokenStore, tokenize
from tests.engine.engine_fixtures import byte_tokenizer

TREE = RowType("TREE", {"tree": "a string"})


def leaf(ids: list[int], name: str = "", weight: float = 1.0) -> Segment:
    """A segment whose every token is scored."""
    return Segment(ids, [weight] * len(ids), name)


def context(ids: list[int], *children: Segment) -> Segment:
    """A segment of which no token is scored."""
    return Segment(ids, [0.0] * len(ids), "prompt", children)


def ids_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(4, 90, length).tolist()


def tree_rows(trees: list[Segment]) -> Dataset:
    """Rows that hold their tokens themselves."""
    texts = [json.dumps(_plain(tree)) for tree in trees]
    rows = Dataset.from_dict({"tree": texts})
    rows._fingerprint = digest("trees", *texts)
    return rows


def _plain(tree: Segment) -> list[Any]:
    return [tree.ids, tree.weights, tree.name, [_plain(child) for child in tree.children]]


def _segment(plain: list[Any]) -> Segment:
    return Segment(plain[0], plain[1], plain[2], tuple(_segment(child) for child in plain[3]))


@dataclass(frozen=True, slots=True)
class Trees:
    """-sum(w log p) of token trees, with the head's gradient made on the way."""

    rows: ClassVar[RowType] = TREE
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: Any) -> Segment | Dropped:
        return _segment(json.loads(row["tree"]))

    def __call__(self, batch: TokenBatch) -> Loss:
        loss = -(batch.weights * batch.logps).sum()
        return Loss(loss, {"nll": loss.detach()})


class TwoPassTrees(Trees):
    """The same loss, computed like one that is not linear."""

    __slots__ = ()
    linear: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Preferences:
    """log(1 + exp(-beta * margin)) over every pair of differently named answers: DPO where there are two."""

    beta: float = 0.05
    rows: ClassVar[RowType] = TREE
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    unit: ClassVar[Literal["tokens", "rows"]] = "rows"
    linear: ClassVar[bool] = False
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: Any) -> Segment | Dropped:
        return _segment(json.loads(row["tree"]))

    def __call__(self, batch: TokenBatch) -> Loss:
        names = sorted({name for name in batch.names if name != "prompt"})
        scores = [batch.sums(name) - batch.sums(name, reference=True) for name in names]
        margins = torch.stack([a - b for i, a in enumerate(scores) for b in scores[i + 1 :]])
        loss = F.softplus(-self.beta * margins).sum()
        return Loss(loss, {"accuracy": (margins[0] > 0).sum()})


def lm_with(model: Any, tokenizer: Any = None, fingerprint: str | None = "tiny") -> LanguageModel:
    return LanguageModel(model, tokenizer or byte_tokenizer(), "tiny", fingerprint, next(model.parameters()).dtype)


def store_of(rows: Dataset, objective: Objective, lm: LanguageModel, max_length: int = 512) -> TokenStore:
    return tokenize(rows, objective, lm.tokenizer, max_length)


def passed(
    lm: LanguageModel,
    rows: Dataset,
    objective: Objective,
    order: list[int] | None = None,
    reference: torch.Tensor | None = None,
    together: bool = True,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all rows: in one packed batch, or each row in a batch of its own."""
    lm.model.zero_grad()
    store = store_of(rows, objective, lm)
    chosen = np.arange(len(store)) if order is None else np.array(order)
    total, offset = 0.0, 0
    for group in [chosen] if together else [np.array([r]) for r in chosen]:
        batch = pack(store, group)
        known = None if reference is None else reference[offset : offset + len(batch.source)]
        offset += len(batch.source)
        with packed_execution(lm.model):
            loss = loss_of(lm.model, batch, objective, rows, store.row_index[group], known, Counter())
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of tensors, each relative to its largest entry.

    A tensor of next to nothing (the gradient of a key's bias is zero but for rounding) is compared to the others.
    """
    assert a.keys() == b.keys()
    scale = max(float(t.abs().max()) for t in b.values())
    return max(float((a[n] - b[n]).abs().max()) / max(float(b[n].abs().max()), 1e-3 * scale, 1e-30) for n in a)


def weights_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in lm.model.named_parameters()}


def config(**changes: Any) -> TrainConfig:
    """A short run in fp32."""
    given: dict[str, Any] = {
        "learning_rate": 1e-2, "examples_per_step": 4, "max_steps": 5, "precision": "fp32",
        "tokens_per_batch": 200, "gradient_checkpointing": False, "save_steps": 1000, "logging_steps": 1,
    }  # fmt: skip
    return TrainConfig(**{**given, **changes})


def lines_of(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is measured by the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
