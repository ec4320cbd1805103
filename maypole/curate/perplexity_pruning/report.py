"""What a selection did to a corpus: per domain before and after, the histogram of nll, and documents to look at.

The numbers are report.json, the same for people is README.md and its picture. Knows nothing about how files are
written.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.artifact import Artifact, command_line
from maypole.curate.corpus import Corpus, Document
from maypole.curate.perplexity_pruning import picture
from maypole.curate.perplexity_pruning.scores import Part, Scores
from maypole.curate.perplexity_pruning.selection import Selection, nll_of, percentiles, place_of

FILE = "report.json"
PERCENTILES = (1, 25, 50, 75, 99)
BINS = 60
MOST_DOMAINS = 50
OTHER = "(other)"
EXCERPT = 1200
NOT_A_NUMBER = "score is not a number"
_EXTREME = 0.1  # percent of the documents at either end that share a bin of the histogram


@dataclass(frozen=True, slots=True)
class Sample:
    """A document at a percentile of nll."""

    percentile: int
    nll: float
    shard: int
    row: int

    def shown(self, document: Document, kept: bool) -> dict[str, Any]:
        text = document.text[:EXCERPT] + ("…" if len(document.text) > EXCERPT else "")
        return {
            "percentile": self.percentile, "nll": self.nll, "id": document.id, "domain": document.domain,
            "kept": kept, "text": text,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is counted: domains by name (beyond the largest they share one line), and bins of nll between `edges`; the
    outermost bins hold what lies beyond, too."""

    domains: tuple[str, ...]
    edges: NDArray[np.float64]
    samples: tuple[Sample, ...]


def wanted(scores: Scores) -> Wanted:
    """The domains, bins and samples of a corpus, from its scores."""
    shares = [_EXTREME / 100, *(p / 100 for p in PERCENTILES), 1 - _EXTREME / 100]
    low, *middle, high = percentiles(scores, shares)
    first, last = nll_of(low), nll_of(high)
    if first == last:
        first, last = first - 0.5, last + 0.5
    samples = [Sample(p, nll_of(key), *place_of(key)) for p, key in zip(PERCENTILES, middle)]
    return Wanted(_largest(scores), np.linspace(first, last, BINS + 1), tuple(samples))


def _largest(scores: Scores) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for part in scores.parts(domains=True):
        assert part.domains is not None
        found = np.bincount(part.domains.indices.to_numpy(), minlength=len(part.domains.dictionary))
        counts.update(dict(zip(part.domains.dictionary.to_pylist(), found.tolist())))
    largest = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(largest if len(largest) <= MOST_DOMAINS else [*largest[: MOST_DOMAINS - 1], OTHER])


@dataclass(frozen=True, slots=True)
class Tally:
    """counts: (domains, 4) documents, tokens, and those of them that are kept; bins, kept: (domains, BINS)."""

    counts: NDArray[np.int64]
    bins: NDArray[np.int64]
    kept: NDArray[np.int64]

    @classmethod
    def empty(cls, wanted: Wanted) -> "Tally":
        size = len(wanted.domains)
        bins = np.zeros((size, BINS), dtype=np.int64)
        return cls(np.zeros((size, 4), dtype=np.int64), bins, bins.copy())

    @classmethod
    def total(cls, wanted: Wanted, plain: Iterable[Mapping[str, Any]]) -> "Tally":
        """The sum of what several shards counted."""
        total = cls.empty(wanted)
        for one in plain:
            for name in cls.__slots__:
                getattr(total, name).__iadd__(np.array(one[name], dtype=np.int64))
        return total

    def add(self, part: Part, kept: NDArray[np.bool_], wanted: Wanted) -> None:
        """Count the rows of `part` that have a usable score."""
        assert part.domains is not None
        place = {name: i for i, name in enumerate(wanted.domains)}
        other = place.get(OTHER, 0)
        codes = np.array([place.get(name, other) for name in part.domains.dictionary.to_pylist()], dtype=np.int64)
        use = part.usable
        domain, kept = codes[part.domains.indices.to_numpy()[use]], kept[use]
        tokens = part.n_tokens[use].astype(np.int64)
        inside = np.clip(np.searchsorted(wanted.edges, part.nll[use], side="right") - 1, 0, BINS - 1)
        for column, values in enumerate((np.ones_like(tokens), tokens, kept.astype(np.int64), tokens * kept)):
            np.add.at(self.counts[:, column], domain, values)
        np.add.at(self.bins, (domain, inside), 1)
        np.add.at(self.kept, (domain[kept], inside[kept]), 1)

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in self.__slots__}


def report(
    corpus: Corpus, scores: Scores, selection: Selection, wanted: Wanted, found: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The document report.json; `found` is what each shard counted."""
    tally = Tally.total(wanted, (one["tally"] for one in found))
    documents, tokens, kept, kept_tokens = tally.counts.sum(axis=0).tolist()
    samples = sorted((s for one in found for s in one["samples"]), key=lambda sample: sample["percentile"])
    return {
        "criterion": selection.criterion,
        "rate": selection.rate,
        "by": selection.by,
        "stratify": selection.stratify,
        "reference": scores.origins[0].model,
        "documents": {"read": scores.rows, "scored": documents, "kept": kept},
        "tokens": {"scored": tokens, "kept": kept_tokens},
        "dropped": without_score(scores, documents),
        "longer_than_context": sum(origin.cut for origin in scores.origins),
        "column_layouts": corpus.layouts,
        "bands": [
            {"stratum": name, "above": low, "up_to": high}
            for name, (low, high) in sorted((n, selection.nll_of(band)) for n, band in selection.bands.items())
        ],
        "percentiles": {str(sample.percentile): sample.nll for sample in wanted.samples},
        "composition": _composition(wanted, tally),
        "histogram": {
            "edges": wanted.edges.tolist(),
            "domains": {n: {"documents": a, "kept": b} for n, a, b in zip(wanted.domains, *_lists(tally))},
        },
        "samples": samples,
    }


def without_score(scores: Scores, usable: int) -> dict[str, int]:
    """Reason -> how many documents no selection can keep; `usable` others can be."""
    dropped: Counter[str] = Counter()
    for origin in scores.origins:
        dropped.update(origin.dropped)
    if wrong := scores.rows - dropped.total() - usable:
        dropped[NOT_A_NUMBER] = wrong
    return dict(dropped)


def metrics(document: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers for the manifest."""
    return {
        "documents": document["documents"]["scored"],
        "kept_documents": document["documents"]["kept"],
        "tokens": document["tokens"]["scored"],
        "kept_tokens": document["tokens"]["kept"],
        "dropped": document["dropped"],
        "median_nll": document["percentiles"]["50"],
    }


def _lists(tally: Tally) -> tuple[list[list[int]], list[list[int]]]:
    return tally.bins.tolist(), tally.kept.tolist()


def _composition(wanted: Wanted, tally: Tally) -> list[dict[str, Any]]:
    """Each domain's documents and tokens before and after, and the shares they are of all."""
    totals = np.maximum(tally.counts.sum(axis=0), 1)
    lines: list[dict[str, Any]] = []
    for name, counts in zip(wanted.domains, tally.counts):
        line: dict[str, Any] = {"domain": name}
        for field, count, total in zip(("documents", "tokens", "kept_documents", "kept_tokens"), counts, totals):
            line |= {field: int(count), f"{field}_share": float(count / total)}
        lines.append(line)
    return lines


def card(document: Mapping[str, Any], artifact: Artifact) -> str:
    """README.md: what a person reads first, and what a hub shows."""
    kept, of = document["documents"]["kept"], document["documents"]["scored"]
    tokens, all_tokens = document["tokens"]["kept"], document["tokens"]["scored"]
    where = {"document": "documents", "token": "tokens"}[document["by"]]
    strata = f", within each {document['stratify']}" if document["stratify"] else ""
    lines = [
        "---",
        "tags:",
        "- maypole",
        "configs:",
        "- config_name: default",
        "  data_files: data/**",
        "---",
        "",
        f"# {artifact.out.name}",
        "",
        f"{kept:,} of {of:,} documents and {tokens:,} of {all_tokens:,} tokens: {document['criterion']} perplexity, "
        f"{document['rate']:.0%} of the {where}{strata}.",
        "",
        *_dropped(document),
        *_noted(document),
        "## Domains",
        "",
        "| domain | documents | kept | share before | share after | tokens | kept |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in document["composition"]:
        lines.append(
            f"| {_cell(line['domain'] or '(none)')} | {line['documents']:,} | {line['kept_documents']:,} "
            f"| {line['documents_share']:.1%} | {line['kept_documents_share']:.1%} "
            f"| {line['tokens']:,} | {line['kept_tokens']:,} |"
        )
    lines += ["", "## Nats per token", "", f"![Documents by their nats per token, and those kept]({picture.FILE})"]
    lines += ["", "## Samples", ""]
    for sample in document["samples"]:
        state = "kept" if sample["kept"] else "left out"
        head = f"{sample['nll']:.3f} nats per token, {state}: `{_cell(sample['id']).replace('`', '')}`"
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", sample["text"])), default=0))
        lines += [f"Percentile {sample['percentile']}, {head}", "", f"{fence}text", sample["text"], fence, ""]
    return "\n".join([*lines, "Made by:", "", "```", command_line(artifact.manifest), "```", ""])


def _dropped(document: Mapping[str, Any]) -> list[str]:
    reasons = [f"{_cell(reason)}: {count:,}" for reason, count in document["dropped"].items()]
    return [f"Left out before that: {', '.join(reasons)}.", ""] if reasons else []


def _noted(document: Mapping[str, Any]) -> list[str]:
    """What is unusual about the corpus and left nothing out."""
    long, layouts = document["longer_than_context"], document["column_layouts"]
    lines = [f"Longer than the reference reads at once, and read in windows: {long:,} documents."] if long else []
    if layouts > 1:
        lines.append(f"The files have {layouts:,} different sets of columns or types; each keeps its own.")
    return [" ".join(lines), ""] if lines else []


def _cell(text: str) -> str:
    """Text from a corpus inside a line of Markdown: one line, nothing that ends a cell or starts a tag."""
    line = " ".join(text.split())[:80]
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
