"""Which replica answers: one that has the adapter and the beginning of the prompt, as long as it is not much busier.

Knows no Ray, no HTTP and no tokenizer: a prompt's blocks are of its text, of equal length, so that prompts that begin
alike have blocks that begin alike.
"""

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

CHARACTERS = 256
"""Of a prompt's text in one block; a prefix shorter than it is not worth a busier replica."""
IDS = 64
"""Tokens in one block of a prompt given as ids."""
BLOCKS = 128
"""Blocks of one prompt that count."""
REMEMBERED = 2**16
"""Blocks that are remembered at once; the one not seen for longest is forgotten first."""
LENIENCE = 8
"""Requests by which a replica that has the prefix may be busier, or as many again as the least busy has."""

Chain = tuple[bytes, ...]
"""Of the adapter, then of every block with all before it."""


def chain_of(document: Mapping[str, Any], base: str) -> Chain:
    """The blocks of what a completion or chat is asked to continue; `base` is the model that needs no adapter."""
    asked = document.get("messages") or _first(document.get("prompt") or document.get("input") or "")
    root = _digest(b"", [document.get("model"), document.get("cache_salt"), document.get("tools")])
    chain = [root if document.get("model") != base else b""]
    for block in _blocks(asked):
        chain.append(_digest(chain[-1] or root, block))
        if len(chain) > BLOCKS:
            break
    return tuple(chain)


class Affinity:
    """What is known of the replicas: which are up, how busy they are, and which blocks they have been asked for."""

    def __init__(self) -> None:
        self.up: tuple[str, ...] = ()
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    def choose(self, replicas: Iterable[str], chain: Chain) -> list[str]:
        """`replicas`, the best first, which from now on counts as having the blocks."""
        known = {name: self._depth(name, chain) for name in replicas}
        least = min((self.running[name] for name in known), default=0)
        fit = {name: depth if self.running[name] <= least + max(LENIENCE, least) else 0
               for name, depth in known.items()}  # fmt: skip
        ranked = sorted(known, key=lambda name: (-fit[name], self.running[name], self._held[name], name))
        if ranked:
            self._remember(ranked[0], chain)
        return ranked

    def begin(self, replica: str) -> None:
        """A request went to `replica`."""
        self.running[replica] += 1

    def end(self, replica: str) -> None:
        """A request of `replica` is answered or lost."""
        if self.running[replica] > 0:
            self.running[replica] -= 1

    def keep(self, replicas: Iterable[str]) -> None:
        """These are up: forget all others, for what one had is gone with it."""
        self.up = tuple(replicas)
        gone = (set(self.running) | set(self._held)) - set(self.up)
        for name in gone:
            del self.running[name], self._held[name]
        if gone:
            for block in [block for block, holders in self._holders.items() if holders & gone]:
                self._holders[block] -= gone
                if not self._holders[block]:
                    del self._holders[block]

    def __len__(self) -> int:
        return len(self._holders)

    def _depth(self, name: str, chain: Chain) -> int:
        """Blocks from the first on that `name` has; the adapter is one of them."""
        depth = 0
        for block in filter(None, chain):
            if name not in self._holders.get(block, ()):
                break
            depth += 1
        return depth

    def _remember(self, name: str, chain: Chain) -> None:
        for block in filter(None, reversed(chain)):  # a block is never forgotten before those that build on it
            holders = self._holders.setdefault(block, set())
            self._held[name] += name not in holders
            holders.add(name)
            self._holders.move_to_end(block)
        while len(self._holders) > REMEMBERED:
            _, holders = self._holders.popitem(last=False)
            self._held.subtract(holders)


AFFINITIES: dict[str, Affinity] = {}
"""Those of this process, by the name of what the replicas belong to."""


def _first(prompt: Any) -> Any:
    """Of several prompts, the first: they are answered together."""
    return prompt[0] if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else prompt


def _blocks(asked: Any) -> Iterator[Any]:
    """Whole blocks only: the last part of a prompt is its own."""
    if isinstance(asked, list) and asked and isinstance(asked[0], int):
        yield from _whole(asked, IDS)
    else:
        yield from _whole(asked if isinstance(asked, str) else json.dumps(asked, sort_keys=True), CHARACTERS)


def _whole(sequence: Sequence[Any], size: int) -> Iterator[Any]:
    for begin in range(0, len(sequence) - size + 1, size):
        yield sequence[begin : begin + size]


def _digest(before: bytes, block: Any) -> bytes:
    return hashlib.blake2b(before + json.dumps(block).encode(), digest_size=16).digest()
