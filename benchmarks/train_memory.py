"""The memory that `fit` says a run will take, beside what the process took at its peak: within 25 % of it.

The two shapes of train_sft.py, bf16 and fp32, with and without recomputing activations, each in a process of its own.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from train_sft import COMMON, ROWS_PER_STEP, GivenTokens, data, model_and_tokenizer

from maypole.models import LanguageModel
from maypole.models.loading import cpu_has_bf16
from maypole.train import TrainConfig, fit
from maypole.train.estimate import Estimate

TOLERANCE = 0.25
STEPS = 40
"""Enough for what is kept from step to step to be there."""


def measure(arm: dict) -> dict[str, int]:
    """Bytes announced before the first step, and the peak of the process after the last."""
    announced: list[int] = []
    Estimate.announce = lambda self: announced.append(self.peak_memory_bytes)
    torch.set_num_threads(1)
    rows = data({**arm, "lengths": "log-normal", "warmup": 0, "steps": STEPS})
    model, tokenizer = model_and_tokenizer(arm["shape"])
    config = TrainConfig(
        max_steps=STEPS, examples_per_step=ROWS_PER_STEP, precision=arm["precision"], save_steps=10_000,
        gradient_checkpointing=arm["recompute"], **COMMON,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        lm = LanguageModel(model, tokenizer, "new", None)
        fit(lm, Dataset.from_list(rows), GivenTokens(), config, out=f"{folder}/out")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"estimate": announced[0], "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def in_a_process(arm: dict) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MAYPOLE_CACHE": cache}
        words = [sys.executable, __file__, "--arm", json.dumps(arm)]
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(ran.stderr[-4000:])
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller shape only")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(json.loads(options.arm))))
        return
    shapes = ("s8k",) if options.quick else ("s8k", "m32k")
    precisions = ("bf16", "fp32") if cpu_has_bf16() else ("fp32",)
    table, found = Table("case", "estimate MB", "measured MB", "ratio", "", box=None), []
    for shape, precision, recompute in itertools.product(shapes, precisions, (False, True)):
        name = f"{shape}, {precision}{', recomputed' if recompute else ''}"
        case = in_a_process({"shape": shape, "precision": precision, "recompute": recompute})
        ratio = case["estimate"] / case["measured"]
        found.append({"case": name, **case, "ratio": round(ratio, 3), "met": abs(ratio - 1) <= TOLERANCE})
        megabytes = [f"{case[side] / 1e6:,.0f}" for side in ("estimate", "measured")]
        table.add_row(name, *megabytes, f"{ratio:.2f}", "" if found[-1]["met"] else "MISSED")
    Console(stderr=True).print(table)
    if options.json:
        print(json.dumps({"name": "train_memory", "cases": found, "tolerance": TOLERANCE}, indent=2))
    sys.exit(0 if all(case["met"] for case in found) else 1)


if __name__ == "__main__":
    main()
