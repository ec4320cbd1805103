"""Training on a GPU: maypole beside trl, in real tokens (or pairs) per second of the clock.

A random Llama of 1.1B parameters, fp32 weights under bf16 autocast on both sides, fused AdamW, no activation
checkpointing, steps of 64 pairs of about 150 tokens of prompt and 300 of an answer. Otherwise as in `align_dpo`,
`align_selm` and `align_online`, whose arms these are: DPO with a live and a cached reference, SELM with its third
answer beside trl's DPO, which has none, and online training with answers of 128 tokens, sampled by the same model.
Short prompts and uniform lengths leave little to share and nothing to pad: there the gain must be smaller. Fine-tuning
(`train_sft`) is that of a Llama with the sizes of a Qwen of 0.5B and its 151,936 words, on rows as long. Both sides run
in this process; `GB` is the GPU's memory at its peak.
"""

import gc
import sys
from collections.abc import Mapping
from typing import Any

import align_online
import align_selm
import torch
import train_sft
from side_by_side import Arm, Case, Measured, main

PAIRS = 64


def cases(quick: bool) -> list[Case]:
    """The sheets' figures first, then what should shrink the gain."""

    def case(
        name: str, target: float | None, peers: Mapping[str, Arm], check: Arm | None = None, **changes: Any
    ) -> Case:
        arm: dict[str, Any] = {
            "kind": "pairs", "side": "dpo", "device": "cuda", "shape": "1.1B", "lengths": "log-normal",
            "precision": "bf16", "pairs": PAIRS, "reference": "live", "unit": "tokens", "warmup": 1, "steps": 3,
        } | changes  # fmt: skip
        return Case(
            name=f"{arm['shape']}, {name}",
            ours=arm,
            peers={name: {**arm, "side": "trl", **setting} for name, setting in peers.items()},
            unit=arm["unit"],
            check={"warmup": 0, "steps": 1, **(check or {})},
            tolerance=2e-2,
            clock="wall",
            rounds=1 if quick else 2,
            target=target,
        )

    def padded(*sizes: int) -> dict[str, Arm]:
        return {f"padded {n} x {PAIRS // n}": {"batch": n} for n in sizes}

    usual = padded(16) if quick else padded(16, 8)
    cached = {"reference": "cached", "warmup": 2}
    online = {"kind": "online", "side": "ours", "unit": "pairs", "prompt": 150, "answer": 128}
    sft = {"kind": "sft", "side": "ours", "shape": "0.5B", "lengths": "chat"}
    rows = train_sft.ROWS_PER_STEP
    settings = ("padded 8 x 4",) if quick else ("padded 8 x 4", "group_by_length 4 x 8", "packing 1024 x 4")
    return [
        case("live reference", 1.8, usual),
        case("cached reference", 1.4, usual, **cached),
        case("SELM beside DPO, cached reference", 1.8, usual, **cached, side="selm"),
        case("online, prompts of 150, answers of 128", 2.0, padded(64), **online),
        case("short prompts and uniform lengths, live reference", None, usual, lengths="uniform"),
        case("fine-tuning", 1.1, {s: train_sft.TRL[s] for s in settings}, {"rows": rows, "accumulate": rows}, **sft),
    ]


def measure(arm: Arm) -> Measured:
    """The arm of another script, its model on the GPU, with the GPU's memory instead of the process's."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = {"online": align_online, "pairs": align_selm, "sft": train_sft}[arm["kind"]].measure(arm)
    return Measured(
        amount=found.amount,
        wall_seconds=found.wall_seconds,
        cpu_seconds=found.cpu_seconds,
        peak_rss_bytes=torch.cuda.max_memory_allocated(),
        check=found.check,
    )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU here")
    main("align_cuda", cases, measure, "trl", gpu=torch.cuda.get_device_name())
