"""Texts and numbers as a reader may safely see them: control and bidi characters as codes, changed words, units.

Knows nothing about HTML: escaping markup is the template's.
"""

import math
import re
import unicodedata
from difflib import SequenceMatcher
from typing import Literal

from maypole.core.statistics import Interval

JOINERS = "\u200c\u200d"
"""Zero-width joiners belong to Persian, Indic scripts and emoji; they neither reorder nor hide anything."""

Change = Literal["same", "removed", "added"]

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def visible(text: str) -> str:
    """`text` with characters that reorder, hide or command shown as codes, e.g. ⟨U+202E⟩; line breaks and tabs stay."""
    plain = text.replace("\r\n", "\n")
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in plain)


def _hidden(character: str) -> bool:
    if character in "\n\t" or character in JOINERS:
        return False
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") or (ord(character) & 0xFFFE) == 0xFFFE


def word_changes(before: str, after: str) -> tuple[list[tuple[Change, str]], list[tuple[Change, str]]]:
    """Both texts cut into runs: what of `before` was removed, what of `after` was added, by words.

    Joining a side's runs gives its text back. In texts of 200 words or more, words that make up over 1 % are no
    anchors: a model that repeats itself would otherwise cost quadratic time.
    """
    a, b = _WORDS.findall(before), _WORDS.findall(after)
    left: list[tuple[Change, str]] = []
    right: list[tuple[Change, str]] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b).get_opcodes():
        if a1 > a0:
            left.append(("same" if kind == "equal" else "removed", "".join(a[a0:a1])))
        if b1 > b0:
            right.append(("same" if kind == "equal" else "added", "".join(b[b0:b1])))
    return left, right


def split_at(runs: list[tuple[Change, str]], size: int) -> tuple[list[tuple[Change, str]], list[tuple[Change, str]]]:
    """The runs of the first `size` characters, and those of the rest."""
    head: list[tuple[Change, str]] = []
    tail: list[tuple[Change, str]] = []
    for change, text in runs:
        if size > 0 and text[:size]:
            head.append((change, text[:size]))
        if text[max(size, 0) :]:
            tail.append((change, text[max(size, 0) :]))
        size -= len(text)
    return head, tail


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """`value` with `digits` decimals, a real minus sign, thousands apart; what rounds to zero has no sign."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    text = f"{abs(value):,.{digits}f}"
    if not any(c in "123456789" for c in text):
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def counted(count: int, thing: str) -> str:
    """ "1 answer", "1,200 answers"."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def percent(share: float) -> str:
    """`0.5` is "50 %"."""
    return f"{number(100 * share, 0)} %"


def bounds(interval: Interval | None, digits: int) -> str:
    """ "[−4.9, −3.9]", or "" without an interval or with one that is unbounded."""
    if interval is None or not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return ""
    return f"[{number(interval.low, digits, signed=True)}, {number(interval.high, digits, signed=True)}]"


def cell(value: str | int | float | None) -> str:
    """A table's cell: counts with thousands apart, floats with four significant digits, "–" for nothing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return number(value, 0)
    if not math.isfinite(value) or 1e3 <= abs(value) < 1e9:
        return number(value, 0)
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """`61` is "1:01", an hour "1:00:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory(size: int) -> str:
    """Bytes as "2.1 GB" or "310 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
