"""What optimism costs: SELM's objective beside our own DPO, and beside trl's DPOTrainer, which has no such term.

The same pairs, models and settings as in `align_dpo`; every pair has a third answer, as long as the others and never
one of them, so that nothing is saved where it would be the chosen or the rejected one. Beside our own DPO pairs count,
beside trl's the tokens of every answer and of the prompt before it, three of SELM's, two of trl's. α is so small that
both sides have one loss; what it is makes no difference to the cost.
"""

import resource
import sys
import tempfile
from typing import Any

import numpy as np
from align_dpo import Stopwatch, data, train_ours, train_trl
from side_by_side import Arm, Case, Measured, main

from maypole.align.preference_options import PreferenceOptions
from maypole.align.selm import REFERENCE, OptimisticPairs
from maypole.models.loading import cpu_has_bf16

ALPHA = 1e-9
WORTH = 1 / 1.35
"""Of our own DPO's pairs a second: a step may take 1.35 times as long as its."""


def cases(quick: bool) -> list[Case]:
    """Beside our own DPO with a live and a cached reference, then beside trl's."""
    fast = "bf16" if cpu_has_bf16() else "fp32"

    def case(name: str, peers: dict[str, Arm], unit: str, target: float, **changes: Any) -> Case:
        arm: dict[str, Any] = {"shape": "s8k", "lengths": "log-normal", "precision": fast, "pairs": 16, "unit": unit}
        arm |= {"warmup": 2, "steps": 4, **changes}
        return Case(
            name=name,
            ours={"side": "selm", **arm},
            peers={peer: {**arm, **setting} for peer, setting in peers.items()},
            unit=unit,
            scout={"steps": 2},
            check={"warmup": 0, "steps": 2},
            tolerance=2e-2 if fast == "bf16" else 1e-4,
            rounds=1 if quick else 3,
            target=target,
        )

    own: dict[str, Arm] = {"maypole's own DPO": {"side": "dpo"}}
    trl: dict[str, Arm] = {f"trl's DPO, padded {n} x {16 // n}": {"side": "trl", "batch": n} for n in (4, 2, 1)}
    return [
        case("s8k, cached reference, beside our own DPO", own, "pairs", WORTH, reference="cached"),
        case("s8k, live reference, beside our own DPO", own, "pairs", WORTH, reference="live"),
        case("s8k, cached reference, beside trl's DPO", trl, "tokens", 3.5, reference="cached"),
    ]


def measure(arm: Arm) -> Measured:
    """Train one side; the clock runs from the end of the warm-up to the end of the last step."""
    count = arm["warmup"] if arm["reference"] == "cached" and arm["warmup"] else arm["warmup"] + arm["steps"]
    rows, lengths = data(arm, count * arm["pairs"])
    watch = Stopwatch(arm["warmup"], arm["warmup"] + arm["steps"])
    with tempfile.TemporaryDirectory() as folder:
        if arm["side"] == "selm":
            rows, lengths = with_third_answers(rows, lengths)
            train_ours(arm, rows, watch, folder, OptimisticPairs(PreferenceOptions(), ALPHA))
        else:
            (train_ours if arm["side"] == "dpo" else train_trl)(arm, rows, watch, folder)
    (wall, cpu), (wall_end, cpu_end) = watch.marks
    per_step = lengths.reshape(count, arm["pairs"]).sum(1)
    timed = [per_step[step % count] if arm["unit"] == "tokens" else arm["pairs"] for step in range(*watch.at)]
    return Measured(
        amount=float(sum(timed)),
        wall_seconds=wall_end - wall,
        cpu_seconds=cpu_end - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check=watch.numbers,
    )


def with_third_answers(rows: list[dict[str, str]], lengths: np.ndarray) -> tuple[list[dict[str, str]], np.ndarray]:
    """The same pairs, each with the chosen answer of the row before, its words turned round, as the policy's own."""
    words = [row["chosen"].split()[::-1] for row in (rows[-1], *rows[:-1])]
    more = [len(row["prompt"].split()) + len(answer) + 1 for row, answer in zip(rows, words)]
    return [{**row, REFERENCE: f" {' '.join(a)}"} for row, a in zip(rows, words)], lengths + np.array(more)


if __name__ == "__main__":
    main("align_selm", cases, measure, "trl")
