"""The tensors of an engine: a private module, its head, the cache, and the packed forwards over them.

Decides nothing about order; knows sequences only as token ids, rows and adapters.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from maypole.core.errors import UnsupportedModel
from maypole.engine.adapters import Adapter
from maypole.engine.fast_path import FAMILIES, FastPath, understands
from maypole.engine.kv_memory import KVMemory
from maypole.engine.lanes import Lanes, segments_of
from maypole.engine.moved_weights import MovedWeights, check_at_home
from maypole.engine.plans import Probe, TreePlan, tree_plan
from maypole.engine.prefix_tree import Ids, PrefixTree, prefix_tree
from maypole.engine.private_copy import private_copy
from maypole.engine.repacked import Product, Repacker
from maypole.engine.step_plan import PaddedPlan, Piece, on, step_plan
from maypole.models.attention import causal_lm, check_supported, configs, use_packed
from maypole.models.block_views import base_model
from maypole.models.forward import self_test
from maypole.models.head import CHUNK, head_of
from maypole.models.plan import Plan, attention_plan

Forward = Callable[[torch.Tensor, torch.Tensor, Plan, int, torch.Tensor | None], torch.Tensor]
"""ids (T,), positions (T,), who sees whom, layer, wanted tokens -> hidden states"""

LEAST_SHARED = 16
"""Tokens from which on sharing the beginning of two sequences saves more than it costs."""

_TESTED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Owners' modules whose architecture passed the self-test; it costs two short forwards."""
_TESTING = threading.Lock()


class Runner:
    """Forwards of one set of base weights, borrowed or replaced; as they stand until `repack` lays them out anew.

    `fast_path` is that of EngineConfig.
    """

    def __init__(
        self,
        model: nn.Module,
        replaced: dict[str, torch.Tensor] | None = None,
        *,
        fast_path: bool | Literal["auto"] = "auto",
    ) -> None:
        check_at_home(model, str(causal_lm(model).config.name_or_path))
        self.module: Any = private_copy(model, replaced)
        self.lanes = Lanes(self.module)
        self.head = head_of(self.module) if self.module.get_output_embeddings() is not None else None
        # A `score` head sits on decoders only; what has neither is an encoder, bidirectional and padded.
        self.packed = self.head is not None or hasattr(self.module, "score")
        if self.packed:
            self._pack(causal_lm(model))
        self.base: Any = base_model(self.module)
        parameter = next(self.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vocabulary = int(self.module.get_input_embeddings().weight.shape[0])
        self.fast = self._takes(fast_path)
        self.repacked_bytes = 0
        self._head_product: Product | None = None
        self._forward: Forward = self._universal
        self._probe: Probe | None = None
        self.moved: MovedWeights | None = None

    def repack(self, most_bytes: int, owner: nn.Module | None = None) -> None:
        """Lay weights out for faster products where the device has them, and take the fast path where it was chosen.

        Copies take up to `most_bytes`, 0 makes none. With `owner`, the module whose Parameters these are, those of
        a decoder move instead of being copied.
        """
        if self.packed:
            self._probe = self._probed()  # before anything moves
        self.moved = MovedWeights(owner, self.module) if owner is not None and self.packed else None
        repacker = Repacker(most_bytes, self.moved)
        if self.fast and self._probe is not None:
            self._forward = FastPath(self.module, self._probe.specs, repacker, self.lanes)
        else:
            repacker.repack(self.base)
        if self.head is not None:
            self._head_product = repacker.product(self.module.get_output_embeddings())
            self.head = head_of(self.module)  # of the weight that is there now
        self.repacked_bytes = repacker.bytes

    def unpack(self) -> None:
        """Undo `repack`."""
        self._forward, self._head_product, self.repacked_bytes = self._universal, None, 0
        for module in self.base.modules():
            module.__dict__.pop("forward", None)
        if self.moved is not None:
            self.moved.give_back()
        if self.head is not None:
            self.head = head_of(self.module)

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of the engine."""
        able = {"embed"}
        if self.head is not None and self.packed:
            able |= {"generate", "stream", "score"} | ({"structured"} if find_spec("llguidance") else set())
        if hasattr(self.module, "score") or hasattr(self.module, "classifier"):
            able |= {"classify"}
        return frozenset(able | ({"adapters"} if self.packed else set()))

    def _takes(self, wanted: bool | Literal["auto"]) -> bool:
        able = self.packed and understands(self.module)
        if wanted is True and not able:
            family = self.module.config.model_type
            raise UnsupportedModel(family, "a fast path", f'fast_path="auto"; it is there for {", ".join(FAMILIES)}')
        return able and (wanted is True or (wanted == "auto" and self.device.type in ("cpu", "cuda")))

    def _pack(self, owner: nn.Module) -> None:
        check_supported(self.module)
        with _TESTING:
            if owner not in _TESTED:
                self_test(self.module)
                _TESTED.add(owner)
        plain = "sdpa" if getattr(self.module, "_supports_sdpa", False) else "eager"
        for config in configs(self.module):
            use_packed(config, plain, strict=True)

    def _probed(self) -> Probe:
        """What the layers ask for, noted in a one-token forward of the model's own modules."""
        probe = Probe()
        token = torch.zeros(1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            self._universal(token, token, probe)
        return probe

    def cache(self, dtype: str, max_bytes: int) -> KVMemory:
        """An empty cache of the shape that the model needs."""
        probe = self._probe or self._probed()
        if dtype == "auto":
            kept = torch.float32 if self.device.type == "cpu" and self.dtype.itemsize < 4 else self.dtype
        else:
            kept = getattr(torch, dtype)
        return KVMemory(probe.shapes, kept, self.device, max_bytes)

    @torch.no_grad()
    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        segments: Sequence[tuple[Adapter, torch.Tensor | None]] = (),
        layer: int = -1,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ids, positions: (T,) -> hidden states (T, d) after the final norm, or those of another `layer`.

        `layer` counts as transformers' `hidden_states`: 0 the embeddings, -1 the last. With `wanted` (n,) only those
        tokens' are returned.
        """
        self.lanes.segments = segments
        try:
            return self._forward(ids, positions, plan, layer, wanted)
        finally:
            self.lanes.segments = ()

    def _universal(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        layer: int = -1,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`forward` by the model's own code."""
        options = {} if layer == -1 else {"output_hidden_states": True}
        with attention_plan(plan):
            out = self.base(input_ids=ids[None], position_ids=positions[None], use_cache=False, **options)
        hidden = out.last_hidden_state[0] if layer == -1 else out.hidden_states[layer][0]
        return hidden if wanted is None else hidden[wanted]

    def tree(self, sequences: Sequence[Ids], adapters: Sequence[Adapter | None]) -> PrefixTree:
        """The prefix tree of `sequences`, shared where the adapter is the same."""
        return prefix_tree(sequences, [id(a) for a in adapters], least=LEAST_SHARED)

    def read(
        self, tree: PrefixTree, adapters: Sequence[Adapter | None], layer: int = -1, wanted: Ids | None = None
    ) -> torch.Tensor:
        """Hidden states (T, d) of the tree that `tree` made for these adapters, or of its `wanted` slots (n,) alone."""
        plan: TreePlan = tree_plan(tree, self.device)
        ids = torch.from_numpy(tree.tokens).to(self.device)
        segments = segments_of(_owners(tree, adapters), adapters)
        chosen = None if wanted is None else torch.from_numpy(wanted).to(self.device)
        return self.forward(ids, plan.positions, plan, segments, layer, chosen)

    def step(
        self, pieces: Sequence[Piece], ids: Sequence[Ids], adapters: Sequence[Adapter | None], *, alike: int = 0
    ) -> torch.Tensor:
        """Hidden states (pieces, d) after the last token of each piece, keys and values of all kept.

        With `alike` the forward has a multiple of so many tokens whatever there is to do, and reads whole rows: a
        piece's result then does not depend on which others come along.
        """
        plan = step_plan(pieces, self.device, whole_rows=alike > 0)
        self.lanes.alone = alike > 0
        tokens = on(np.concatenate(ids), self.device)
        segments = self.lanes.segments_of([p.count for p in pieces], adapters)
        if not alike:
            return self.forward(tokens, plan.positions, plan, segments, wanted=plan.last)
        padding = -len(tokens) % alike
        wide = PaddedPlan(plan, len(tokens))
        zeros = tokens.new_zeros(padding)
        hidden = self.forward(torch.cat([tokens, zeros]), torch.cat([plan.positions, zeros]), wide, segments)
        return hidden[plan.last]

    def logits(self, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Chunks (rows, logits (rows, vocabulary) in fp32 or better) of hidden states (N, d)."""
        assert self.head is not None
        with torch.no_grad():
            for a in range(0, hidden.shape[0], CHUNK):
                rows = slice(a, min(a + CHUNK, hidden.shape[0]))
                yield rows, self.head.logits(hidden[rows], self._head_product)


def _owners(tree: PrefixTree, adapters: Sequence[Adapter | None]) -> Ids:
    owner = np.empty(len(tree.tokens), dtype=np.int64)
    for path, start, adapter in zip(tree.paths, tree.starts, adapters):
        owner[path[start:]] = id(adapter)
    return owner
