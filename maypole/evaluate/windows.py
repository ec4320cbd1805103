"""Documents beyond the context cut into windows, so that every token is scored exactly once. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass

from maypole.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """What a model reads of a document at once: `ids`, of which those from `start` on are scored here.

    `first` is the position of ``ids[start]`` in the document.
    """

    ids: list[int]
    start: int
    first: int


def windows(ids: Sequence[int], max_length: int, *, overlap: int = 0, bos: int | None = None) -> list[Window]:
    """Cut a document so that no window has more than `max_length` ids.

    Raises ConfigError where a window would have no room for tokens of its own.

    Parameters
    ----------
    ids
        The document, with or without a leading `bos`.
    overlap
        How many tokens before its own a window reads as context only.
    bos
        Put in front of every window, where it predicts the first token. Without one the document's first token has
        nothing before it and is the only one never scored, and `overlap` is at least 1.
    """
    tokens = list(ids)
    lead = [] if bos is None else [bos]
    offset = 1 if lead and tokens[:1] == lead else 0
    tokens = tokens[offset:]
    kept = overlap if lead else max(overlap, 1)
    if overlap < 0 or len(lead) + kept >= max_length:
        raise ConfigError("overlap", overlap, f"0 or more, and below max_length {max_length}")
    found: list[Window] = []
    at = 0 if lead else 1
    while at < len(tokens):
        begin = max(0, at - kept)
        end = min(len(tokens), begin + max_length - len(lead))
        found.append(Window([*lead, *tokens[begin:end]], len(lead) + at - begin, at + offset))
        at = end
    return found
