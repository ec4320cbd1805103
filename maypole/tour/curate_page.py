"""What the report says of stage 1: which texts went, why, and what that did to the held-out loss at equal steps.

Reads the stage's artifact; measures nothing.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from maypole.core.statistics import verdict
from maypole.curate.perplexity_pruning.report import FILE
from maypole.tour import base
from maypole.tour.curate import CRITERION, DOCUMENTS, KEPT, SCORES, Found
from maypole.tour.plan import CuratePlan
from maypole.tour.report import Example, Plot, Stage, Table, documents_by_surprise, token_share
from maypole.tour.report.words import bounds, number, percent
from maypole.tour.stages import StageInfo
from maypole.tour.telling import Facts, Progress, common


def page(facts: Facts, info: StageInfo, stage: Progress) -> Stage:
    """The stage's part of the report."""
    if stage.artifact is None:
        return Stage(name=info.name, number=info.number, finding=stage.finding, **common(stage))
    path = stage.artifact.path
    pruned, found = json.loads((path / KEPT / FILE).read_bytes()), Found.of(path)
    names = [line["domain"] for line in found.composition]
    bins = pruned["histogram"]["domains"]
    counts = {name: (_pairs(bins[name]["documents"]), _pairs(bins[name]["kept"])) for name in names}
    plots = [documents_by_surprise(pruned["histogram"]["edges"][::2], counts, _band(pruned))]
    if len(names) > 1:
        plots.append(_share(found))
    out = facts.options.out / info.directory
    again = ["maypole", "curate", "prune", "--data", str(out / DOCUMENTS), "--scores", str(out / SCORES)]
    again += ["--criterion", CRITERION, "--rate", f"{pruned['rate']:g}", "--columns", "id=id", "domain=domain"]
    return Stage(
        name=info.name, number=info.number, plots=plots, finding=_finding(facts.plan.curate, pruned, found),
        table=_table(pruned, found), examples=[_example(sample) for sample in pruned["samples"]],
        repeat_command=shlex.join([*again, "--out", str(facts.options.out / KEPT)]), **common(stage),
    )  # fmt: skip


def _pairs(bins: Sequence[int]) -> list[int]:
    """Two neighbours as one: some thousand documents make a smooth line that way."""
    return [a + b for a, b in zip(bins[::2], bins[1::2], strict=True)]


def _band(pruned: Mapping[str, Any]) -> tuple[float, float]:
    """The nll between which documents were kept; where there is no border, that of the picture."""
    edges, band = pruned["histogram"]["edges"], pruned["bands"][0]
    low, high = band["above"], band["up_to"]
    return (edges[0] if low is None else low, edges[-1] if high is None else high)


def _share(found: Found) -> Plot:
    before, after = ({line["domain"]: line[name] for line in found.composition} for name in ("tokens", "kept_tokens"))
    return token_share(before, after)


def _finding(plan: CuratePlan, pruned: Mapping[str, Any], found: Found) -> str:
    kept, scored = pruned["documents"]["kept"], pruned["documents"]["scored"]
    rows = f"{plan.examples_per_step} row{'s' if plan.examples_per_step > 1 else ''}"
    said = {
        "better": "better, so the next stage learns from what is kept",
        "worse": "worse, so the next stage learns from all",
        "no clear change": "no clear change; the next stage learns from what is kept",
    }[verdict(found.change, "lower")]
    return (
        f"{kept:,} of {scored:,} documents are kept: the middle {percent(plan.rate)} by the surprise of "
        f"{base.SHIPPED_BASE} at the first {plan.tokens_read} tokens of each. {_mixed(plan, found)} Held-out loss "
        f"after {plan.trial_steps} steps of {rows} on either: {number(found.loss['kept'], 3)} nats per token by what "
        f"is kept, {number(found.loss['all'], 3)} by all, {number(found.change.mean, 3, signed=True)} "
        f"{bounds(found.change, 3)}: {said}."
    )


def _mixed(plan: CuratePlan, found: Found) -> str:
    if not plan.noise:
        return "Nothing was mixed in."
    corpus = found.composition[0]
    before, after = (corpus[n] / sum(line[n] for line in found.composition) for n in ("documents", "kept"))
    return (
        f"Noise and boilerplate were mixed in to be found: {percent(before)} of the documents are {corpus['domain']}, "
        f"{percent(after)} of those kept."
    )


def _table(pruned: Mapping[str, Any], found: Found) -> Table:
    """Documents and tokens by domain, then what was left out by reason."""
    counts = [(line["documents"], line["kept"], line["tokens"], line["kept_tokens"]) for line in found.composition]
    rows: list[Any] = [(line["domain"], *count) for line, count in zip(found.composition, counts)]
    if len(rows) > 1:
        rows.append(("all", *(sum(column) for column in zip(*counts))))
    out = pruned["documents"]["scored"] - pruned["documents"]["kept"]
    reasons = {"too little surprise": out // 2, "too much surprise": out - out // 2, **pruned["dropped"]}
    rows += [(f"left out: {reason}", count, None, None, None) for reason, count in reasons.items() if count]
    columns = ("", "documents", "documents kept", "tokens", "tokens kept")
    return Table(columns=columns, rows=rows, caption="Before and after, and what was left out")


def _example(sample: Mapping[str, Any]) -> Example:
    state = "kept" if sample["kept"] else "left out"
    surprise = f"{number(sample['nll'], 2)} nats per token"
    label = f"percentile {sample['percentile']}, {surprise}, {state}: {sample['domain']}"
    return Example(label=label, after=sample["text"])
