"""Which documents are kept: a band of their ranks by perplexity, exactly as many as asked for (arXiv 2405.20541, 3).

Documents are ordered by (nll, hash of id, place): ties are settled by content, so every sharding agrees but for equal
ids. Of a total W (documents, or tokens) with k = round(rate W) a document is kept if what stands before it, P, lies in

    low  0 <= P < k      medium  m <= P < m + k, m = (W - k) // 2      high  W - k <= P < W

Knows nothing about models and about the files that are kept.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maypole.core.config import check
from maypole.core.errors import ConfigError, UserError
from maypole.curate.perplexity_pruning.ranks import Ints, Key, Rows, locate
from maypole.curate.perplexity_pruning.scores import Part, Scores

Criterion = Literal["low", "medium", "high", "random"]
CRITERIA: tuple[Criterion, ...] = ("low", "medium", "high", "random")
UNITS = ("document", "token")
STRATA = (None, "length", "domain")
MOST_STRATA = 64
_SHARD_BITS = 40  # of a place: row below, shard above


@dataclass(frozen=True, slots=True)
class Band:
    """Keys above `after` and up to `upto` are kept; None is no bound."""

    after: Key | None
    upto: Key | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A band for every stratum (one called "" where there are none); a stratum of which nothing is kept has none."""

    criterion: Criterion
    rate: float
    by: Literal["document", "token"]
    stratify: Literal["length", "domain"] | None
    seed: int
    bands: Mapping[str, Band]

    def keep(self, part: Part) -> NDArray[np.bool_]:
        """(n,) whether each row of `part` is kept."""
        order = _order(self.criterion, self.seed, part)
        kept = np.zeros(len(part), dtype=bool)
        names, strata = _strata(self.stratify, part)
        for code in np.unique(strata):
            if (band := self.bands.get(names[int(code)])) is not None:
                rows = np.flatnonzero((strata == code) & part.usable)
                kept[rows] = ~_up_to(order, rows, band.after, False) & _up_to(order, rows, band.upto, True)
        return kept

    def nll_of(self, band: Band) -> tuple[float | None, float | None]:
        """The nll above which and up to which `band` keeps; None without a bound, or where the draw is random."""
        if self.criterion == "random":
            return None, None
        ends = [None if key is None else nll_of(key) for key in (band.after, band.upto)]
        return ends[0], ends[1]


def check_choice(criterion: str, rate: float, by: str, stratify: str | None) -> None:
    """ConfigError for a choice that `select` cannot make."""
    check("criterion", criterion, CRITERIA)
    check("by", by, UNITS)
    check("stratify", stratify, STRATA)
    if not 0 < rate <= 1:
        raise ConfigError("rate", rate, "above 0, at most 1")


def select(
    scores: Scores,
    *,
    criterion: Criterion = "medium",
    rate: float = 0.5,
    by: Literal["document", "token"] = "document",
    stratify: Literal["length", "domain"] | None = None,
    seed: int = 0,
) -> Selection:
    """The selection of `rate` of the documents, or of the tokens, that have a score.

    ConfigError for a rate outside (0, 1] and for more domains than can be strata; UserError where no score is a number.

    Parameters
    ----------
    criterion
        Low, medium or high perplexity, or "random": by hash of seed and id, the same in every sharding.
    by
        What the rate counts. A document that crosses a border belongs to the side on which it begins.
    stratify
        The same rate within each length (powers of two in tokens) or each domain, instead of overall.
    """
    check_choice(criterion, rate, by, stratify)
    names: dict[str, int] = {}

    def rows() -> Iterator[Rows]:
        for part in scores.parts(ids=True, domains=stratify == "domain"):
            usable = np.flatnonzero(part.usable)
            group = _groups(*_strata(stratify, part), usable, names)
            weight = part.n_tokens[usable].astype(np.int64) if by == "token" else np.ones(len(usable), dtype=np.int64)
            yield Rows(group, weight, _chosen(_order(criterion, seed, part), usable), _DIGITS[criterion == "random"])

    borders: dict[int, tuple[int, int, int]] = {}

    def units(totals: Ints) -> dict[int, list[int]]:
        for group, total in enumerate(totals.tolist()):
            borders[group] = (*_border(criterion, rate, total), total)
        return {g: [edge - 1 for edge in (low, high) if 0 < edge < total] for g, (low, high, total) in borders.items()}

    keys = locate(rows, units)
    if not borders:
        raise UserError("none of the documents has a score that is a number", expected="a model whose loss is finite")
    bands: dict[str, Band] = {}
    for name, group in names.items():
        low, high, total = borders[group]
        if low == high:
            continue
        found = iter(keys[group])
        after = next(found) if low > 0 else None
        bands[name] = Band(after, next(found) if high < total else None)
    if not bands:
        total = sum(total for _, _, total in borders.values())
        raise ConfigError("rate", rate, f"more: of {total:,} {by}s this keeps none")
    return Selection(criterion, rate, by, stratify, seed, bands)


def percentiles(scores: Scores, shares: Sequence[float]) -> list[Key]:
    """The keys of the documents at the given shares of all, as numpy's quantile(method="inverted_cdf") has them."""

    def rows() -> Iterator[Rows]:
        for part in scores.parts(ids=True):
            usable = np.flatnonzero(part.usable)
            zeros, ones = np.zeros(len(usable), dtype=np.int64), np.ones(len(usable), dtype=np.int64)
            yield Rows(zeros, ones, _chosen(_order("low", 0, part), usable), _DIGITS[False])

    def units(totals: Ints) -> dict[int, list[int]]:
        return {g: [max(0, int(np.ceil(s * n)) - 1) for s in shares] for g, n in enumerate(totals.tolist()) if n}

    return locate(rows, units).get(0, [])


def nll_of(key: Key) -> float:
    """The nll in a key that `percentiles` gave."""
    bits = np.array([key[0] << 16 | key[1]], dtype=np.uint32)
    back = np.where(bits >> 31 == 1, bits ^ np.uint32(1 << 31), ~bits).astype(np.uint32)
    return float(back.view(np.float32)[0])


def place_of(key: Key) -> tuple[int, int]:
    """(shard, row) of a key that `percentiles` gave."""
    place = 0
    for digit in key[-4:]:
        place = place << 16 | digit
    return place >> _SHARD_BITS, place & ((1 << _SHARD_BITS) - 1)


def hashed(ids: Sequence[str | None], purpose: str = "") -> NDArray[np.uint64]:
    """(n,) 64 bits of each id, the same on every machine; `purpose` makes another, independent draw of them."""
    key = purpose.encode()
    found = [hashlib.blake2b((name or "").encode(), digest_size=8, key=key).digest() for name in ids]
    return np.frombuffer(b"".join(found), dtype=">u8").astype(np.uint64)


def _border(criterion: Criterion, rate: float, total: int) -> tuple[int, int]:
    """Where the kept band begins and ends, in units of the total."""
    kept = round(rate * total)
    if criterion == "medium":
        low = (total - kept) // 2
        return low, low + kept
    return (total - kept, total) if criterion == "high" else (0, kept)


_DIGITS = {False: 2 + 4 + 4, True: 4 + 4}
"""Digits of a key: nll (where it counts), hash, place."""


def _order(criterion: Criterion, seed: int, part: Part) -> Callable[[int, Ints], Ints]:
    """digit(k, rows) of the keys of `part`. Hashes are made once for all digits of the same rows."""
    random = criterion == "random"
    bits = (part.nll + np.float32(0)).view(np.uint32)  # -0.0 is 0.0
    memo: dict[str, tuple[Ints, NDArray[np.uint64]]] = {}

    def hashes(rows: Ints) -> NDArray[np.uint64]:
        if "hash" not in memo or not np.array_equal(memo["hash"][0], rows):
            assert part.ids is not None
            ids = part.ids.take(pa.array(rows)).to_pylist()
            memo["hash"] = rows, hashed(ids, f"random {seed}" if random else "")
        return memo["hash"][1]

    def digit(k: int, rows: Ints) -> Ints:
        if not random:
            if k < 2:
                word = bits[rows]
                ascending = np.where(word >> 31 == 1, ~word, word | np.uint32(1 << 31))
                return (ascending >> np.uint32(16 * (1 - k)) & np.uint32(0xFFFF)).astype(np.int64)
            k -= 2
        word = hashes(rows) if k < 4 else part.row[rows].astype(np.uint64) | np.uint64(part.shard << _SHARD_BITS)
        return (word >> np.uint64(16 * (3 - k % 4)) & np.uint64(0xFFFF)).astype(np.int64)

    return digit


def _chosen(digit: Callable[[int, Ints], Ints], rows: Ints) -> Callable[[int, Ints], Ints]:
    """`digit` of some of the rows, counted among themselves."""
    return lambda k, chosen: digit(k, rows[chosen])


def _up_to(digit: Callable[[int, Ints], Ints], rows: Ints, key: Key | None, without: bool) -> NDArray[np.bool_]:
    """(m,) whether the key of each of `rows` is at most `key`; `without` a key, that."""
    if key is None:
        return np.full(len(rows), without)
    found = np.zeros(len(rows), dtype=bool)
    equal = np.arange(len(rows))
    for k, border in enumerate(key):
        value = digit(k, rows[equal])
        found[equal[value < border]] = True
        equal = equal[value == border]
        if not len(equal):
            return found
    found[equal] = True
    return found


def _strata(stratify: str | None, part: Part) -> tuple[list[str], Ints]:
    """Names, and for each row of `part` (n,) which of them its stratum has."""
    if stratify == "length":
        return [str(1 << power) for power in range(32)], (np.frexp(part.n_tokens)[1] - 1).astype(np.int64)
    if stratify == "domain":
        assert part.domains is not None
        return part.domains.dictionary.to_pylist(), part.domains.indices.to_numpy().astype(np.int64)
    return [""], np.zeros(len(part), dtype=np.int64)


def _groups(names: Sequence[str], strata: Ints, rows: Ints, groups: dict[str, int]) -> Ints:
    """(m,) the group of each of `rows`; groups are numbered as their names appear."""
    strata = strata[rows]
    numbers = np.zeros(len(names), dtype=np.int64)
    for code in np.unique(strata):
        numbers[code] = groups.setdefault(names[int(code)], len(groups))
    if len(groups) > MOST_STRATA:
        raise ConfigError("stratify", "domain", f"length, or a domain column with at most {MOST_STRATA} values")
    return numbers[strata]
