"""Keys and values of prompts' beginnings, kept for who begins alike: a radix tree of runs of tokens.

Prefixes are shared only under equal keys (adapter, salt). Knows nothing about rows or requests.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from maypole.engine.prefix_tree import Ids, shared_length

Tensors = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> keys and values."""

LEAST = 16
"""Tokens from which on a run is worth the extra step of attention that it costs."""

Level = dict[bytes, "Node"]
"""Runs after the same tokens, by their first `LEAST` tokens, or all where they are fewer.

What two of them begin with in common, such as the token that begins every text, is shorter than `LEAST`, so that at
most one of them is found by that many tokens.
"""


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens after those of `parent`. `layers`: keys and values (kv_heads, n, d); `users` read from here."""

    key: Hashable
    tokens: Ids
    start: int
    layers: Tensors
    parent: "Node | None"
    children: Level = field(default_factory=dict)
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
    """Runs by key."""

    def __init__(self) -> None:
        self.tokens = 0
        self._roots: dict[Hashable, Level] = {}
        self._clock = 0

    def match(self, key: Hashable, ids: Ids, limit: int) -> Node | None:
        """The run whose end is the longest known beginning of ids[:limit]; a run is split where that ends inside it."""
        found: Node | None = None
        level = self._roots.get(key, {})
        at = 0
        while run := _longest(level, ids[at:limit]):
            shared = shared_length(run.tokens, ids[at:limit])
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
        self._siblings(node)[_name(node.tokens)] = node
        self.tokens += len(node.tokens)
        return node

    def evict(self) -> bool:
        """Forget the least lately used run that nobody reads and nothing follows; False where there is none."""
        idle = [n for n in self.nodes() if not n.children and n.users == 0]
        if not idle:
            return False
        node = min(idle, key=lambda n: n.used)
        siblings = self._siblings(node)
        del siblings[_name(node.tokens)]
        if not siblings and node.parent is None:
            del self._roots[node.key]
        self.tokens -= len(node.tokens)
        return True

    def nodes(self) -> Iterator[Node]:
        """Every run."""
        for roots in self._roots.values():
            yield from _below(roots.values())

    def _split(self, node: Node, at: int) -> Node:
        """`node` keeps its last tokens; its first `at` become the run before it, which is returned."""
        first = {n: (k[:, :at].clone(), v[:, :at].clone()) for n, (k, v) in node.layers.items()}
        before = Node(node.key, node.tokens[:at], node.start, first, node.parent, used=node.used)
        self._siblings(node)[_name(before.tokens)] = before
        node.layers = {n: (k[:, at:].clone(), v[:, at:].clone()) for n, (k, v) in node.layers.items()}
        node.tokens, node.start, node.parent = node.tokens[at:], node.start + at, before
        before.children[_name(node.tokens)] = node
        return before

    def _siblings(self, node: Node) -> Level:
        return self._roots.setdefault(node.key, {}) if node.parent is None else node.parent.children


def _longest(level: Level, ids: Ids) -> Node | None:
    """The run that begins as `ids` do for at least `LEAST` tokens, else the longest shorter one that is all of it."""
    for size in range(min(LEAST, len(ids)), 0, -1) if level else ():
        node = level.get(_name(ids[:size]))
        if node is not None:
            return node
    return None


def _name(tokens: Ids) -> bytes:
    return tokens[:LEAST].tobytes()


def _below(roots: Iterable[Node]) -> Iterator[Node]:
    open_ = list(roots)
    while open_:
        node = open_.pop()
        yield node
        open_ += node.children.values()
