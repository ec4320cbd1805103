"""Keys and values of prompts' beginnings, kept for who begins alike: a radix tree of runs of tokens.

Prefixes are shared only under equal keys (adapter, salt). Knows nothing about rows or requests.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import torch

from maypole.engine.prefix_tree import Ids, shared_length

Tensors = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> keys and values."""

LEAST = 16
"""Tokens from which on a run is worth the extra step of attention that it costs."""


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens after those of `parent`. `layers`: keys and values (kv_heads, n, d); `users` read from here."""

    key: Hashable
    tokens: Ids
    start: int
    layers: Tensors
    parent: "Node | None"
    children: list["Node"] = field(default_factory=list)
    users: int = 0
    used: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def chain(self) -> Iterator["Node"]:
        """This run and all before it, the last first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class PrefixCache:
    """Runs by key; every run of a level starts with another token."""

    def __init__(self) -> None:
        self.tokens = 0
        self._roots: dict[Hashable, list[Node]] = {}
        self._clock = 0

    def match(self, key: Hashable, ids: Ids, limit: int) -> Node | None:
        """The run whose end is the longest known beginning of ids[:limit]; a run is split where that ends inside it."""
        found: Node | None = None
        level = self._roots.get(key, [])
        at = 0
        while at < limit:
            run, shared = _best(level, ids[at:limit])
            if run is None or (shared < len(run.tokens) and shared < LEAST):
                break
            if shared < len(run.tokens):
                run = self._split(run, shared)
            found, at, level = run, run.end, run.children
        self._clock += 1
        for node in found.chain() if found is not None else ():
            node.used = self._clock
        return found

    def missing(self, key: Hashable, ids: Ids) -> tuple[Node | None, int]:
        """The run after which `ids` would go on, and how many tokens of it are not known yet."""
        node = self.match(key, ids, len(ids))
        return node, len(ids) - (0 if node is None else node.end)

    def insert(self, key: Hashable, ids: Ids, parent: Node | None, layers: Tensors) -> Node:
        """A new run with the tokens of `ids` after `parent`."""
        start = 0 if parent is None else parent.end
        node = Node(key, ids[start:].copy(), start, layers, parent, used=self._clock)
        self._siblings(node).append(node)
        self.tokens += len(node.tokens)
        return node

    def evict(self) -> bool:
        """Forget the least lately used run that nobody reads and nothing follows; False where there is none."""
        idle = [n for n in self.nodes() if not n.children and n.users == 0]
        if not idle:
            return False
        node = min(idle, key=lambda n: n.used)
        siblings = self._siblings(node)
        siblings.remove(node)
        if not siblings and node.parent is None:
            del self._roots[node.key]
        self.tokens -= len(node.tokens)
        return True

    def nodes(self) -> Iterator[Node]:
        """Every run."""
        for roots in self._roots.values():
            yield from _below(roots)

    def _split(self, node: Node, at: int) -> Node:
        """`node` keeps its last tokens; its first `at` become the run before it, which is returned."""
        first = {n: (k[:, :at].clone(), v[:, :at].clone()) for n, (k, v) in node.layers.items()}
        before = Node(node.key, node.tokens[:at], node.start, first, node.parent, [node], used=node.used)
        siblings = self._siblings(node)
        siblings[siblings.index(node)] = before
        node.layers = {n: (k[:, at:].clone(), v[:, at:].clone()) for n, (k, v) in node.layers.items()}
        node.tokens, node.start, node.parent = node.tokens[at:], node.start + at, before
        return before

    def _siblings(self, node: Node) -> list[Node]:
        return self._roots.setdefault(node.key, []) if node.parent is None else node.parent.children


def _best(level: list[Node], ids: Ids) -> tuple[Node | None, int]:
    for node in level:
        shared = shared_length(node.tokens, ids)
        if shared:
            return node, shared
    return None, 0


def _below(roots: list[Node]) -> Iterator[Node]:
    open_ = list(roots)
    while open_:
        node = open_.pop()
        yield node
        open_ += node.children
