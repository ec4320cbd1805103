"""What HTTP costs: the server with 32 clients who read streams, beside the same work in process, in tokens per CPU
second.

Random Llamas of 11M (S) and 110M (L) parameters in fp32, greedy: prompts of 64 tokens, 128 new ones, 32 at a time; both
sides must say the same. locust is the clients, in a process of its own that is not counted; each asks again as soon as
it has its answer. On the other side the same requests are given to `Engine.generate` all at once. A step of S takes a
fifth of a step of L while the work of an event is the same, so there HTTP weighs more.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.random_llamas import SIZES, language_model, random_llama
from peers.served import completions, cpu_seconds, peak_rss_bytes, served
from side_by_side import Arm, Case, Measured, main

from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.models.saving import save

CLIENTS = 32
Did = tuple[list[str], float, float, int]
"""Texts, wall seconds, CPU seconds, bytes of memory at most."""
PEERS = Path(__file__).parent / "peers"


def cases(quick: bool) -> list[Case]:
    """Quick: one round, one answer for each client."""

    def case(size: str, target: float | None) -> Case:
        arm = {"size": size, "prompt": 64, "new": 128, "count": CLIENTS * (1 if quick else 2)}
        return Case(
            name=f"{size}, {CLIENTS} streams", ours={"side": "over HTTP", **arm},
            peers={"in process": {"side": "in process", **arm}}, unit="tokens", check=None, tolerance=0.0,
            rounds=1 if quick else 3, target=target, needs=("locust",),
        )  # fmt: skip

    return [case("L", 0.9), case("S", None)]


def measure(arm: Arm) -> Measured:
    """Save the model, then answer all prompts, by the server or by an engine here."""
    lm = language_model(random_llama(arm["size"]))
    draw = np.random.default_rng(0)
    size = (arm["count"], arm["prompt"])
    prompts = lm.tokenizer.batch_decode(draw.integers(300, SIZES[arm["size"]]["vocab_size"], size).tolist())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(lm, folder / "model")
        del lm
        run = _over_http if arm["side"] == "over HTTP" else _in_process
        texts, wall, cpu, peak = run(folder, prompts, arm["new"])
    check = {str(i): float(zlib.crc32(text.encode())) for i, text in enumerate(texts)}
    return Measured(
        amount=arm["new"] * len(prompts), wall_seconds=wall, cpu_seconds=cpu, peak_rss_bytes=peak, check=check
    )


def _in_process(folder: Path, prompts: Sequence[str], new: int) -> Did:
    engine = Engine.load(folder / "model", dtype="float32", config=EngineConfig(max_seqs=CLIENTS))
    engine.generate([Request(prompts[0], Sampling(max_tokens=2, temperature=0.0))])
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = engine.generate([Request(prompt, Sampling(max_tokens=new, temperature=0.0)) for prompt in prompts])
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    return [output.text for output in outputs], *seconds, peak_rss_bytes(os.getpid())


def _over_http(folder: Path, prompts: Sequence[str], new: int) -> Did:
    work = folder / "work.json"
    work.write_text(json.dumps({"prompts": prompts, "new": new}))
    command = [sys.executable, "-m", "maypole.cli.main", "serve", str(folder / "model"), "--dtype", "float32"]
    command += ["--max-seqs", str(CLIENTS), "--threads", "1", "--port", "{port}"]
    load: list[Any] = [sys.executable, "-m", "locust", "-f", PEERS / "streams.py", "--headless", "--only-summary"]
    with served(command, folder / "log") as (url, process):
        completions(url, "model", prompts[:1], 2)
        wall, cpu = time.perf_counter(), cpu_seconds(process)
        load += ["--users", str(CLIENTS), "--spawn-rate", str(CLIENTS), "--host", url]
        subprocess.run(load, env={**os.environ, "WORK": str(work)}, check=True, capture_output=True, timeout=900)
        seconds = time.perf_counter() - wall, cpu_seconds(process) - cpu
        peak = peak_rss_bytes(process)
    return json.loads((folder / "answers.json").read_text()), *seconds, peak


if __name__ == "__main__":
    main("serve_load", cases, measure, "locust")
