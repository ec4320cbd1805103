"""Two replicas on a local Ray cluster: prompts of 8 prefixes, routed as maypole does beside round-robin.

What is compared is not time but tokens: how many tokens of the prefixes the replicas computed rather than took from
their caches, which the answers' usage tells (the tails are everybody's own). The answers must be equal. With prompts
that share nothing so must be the tokens. S of 11M parameters; 8 prefixes of 512 tokens, 12 requests each, 4 at a time.
Memory and CPU seconds are those of the process in front.
"""

import resource
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from peers.random_llamas import SIZES, language_model, random_llama
from side_by_side import Arm, Case, Measured, main

from maypole.core.ray_cluster import connected
from maypole.models.saving import save
from maypole.serve.replicas import ROUTER, open_front
from maypole.serve.running import in_thread
from maypole.serve.verbs import ServeOptions

HEAD, TAIL = 512, 16
"""Tokens of a prefix, and of what follows it."""
ROUND_ROBIN = "peers.round_robin:RoundRobin"


@contextmanager
def served(model: Path, router: str) -> Iterator[str]:
    options = ServeOptions(model=str(model), name="model", replicas=2, ray="local", threads=1)
    with open_front(options, keys=(), router=router) as app, in_thread(app) as url:
        yield f"{url}/v1/completions"


def prompts_of(prefixes: int, each: int, length: int, tail: int, vocabulary: int, seed: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    heads = [draw.integers(3, vocabulary, length).tolist() for _ in range(prefixes)]
    found = [head + draw.integers(3, vocabulary, tail).tolist() for _ in range(each) for head in heads]
    return [found[i] for i in draw.permutation(len(found))]


def asked(url: str, prompts: list[list[int]]) -> tuple[list[str], int]:
    """The answers, and the tokens of prefixes that were computed for them."""

    def one(prompt: list[int]) -> dict[str, Any]:
        body = {"model": "model", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(url, json=body, timeout=600)
        answer.raise_for_status()
        return answer.json()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, prompts))
    used = [one["usage"] for one in found]
    computed = sum(max(u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] - TAIL, 0) for u in used)
    return [one["choices"][0]["text"] for one in found], computed


def cases(quick: bool) -> list[Case]:
    """Quick: one round."""
    rounds = 1 if quick else 3

    def case(name: str, work: Arm, **limits: Any) -> Case:
        ours, peer = {**work, "router": ROUTER}, {**work, "router": ROUND_ROBIN}
        return Case(
            name=name, ours=ours, peers={"round-robin": peer}, unit="prefix tokens", check=None, tolerance=0.0,
            clock="tokens", rounds=rounds, **limits,
        )  # fmt: skip

    return [
        case("8 prefixes of 512 tokens", {"prefixes": 8, "each": 12}, target=1.67),
        case("nothing shared", {"prefixes": 96, "each": 1}, at_most=1.01),
    ]


class Turns:
    """Replicas in turn on one cluster, and the seed of each turn's prompts: equal on both sides."""

    def __init__(self, model: Path) -> None:
        self._model, self._turns = model, Counter[str]()

    def measure(self, arm: Arm) -> Measured:
        """Ask new replicas everything; what counts is the tokens of prefixes that they compute."""
        seed, self._turns[repr(arm)] = self._turns[repr(arm)], self._turns[repr(arm)] + 1
        prompts = prompts_of(arm["prefixes"], arm["each"], HEAD, TAIL, SIZES["S"]["vocab_size"], seed)
        with served(self._model, arm["router"]) as url:
            begin, cpu = time.perf_counter(), time.process_time()
            texts, computed = asked(url, prompts)
            seconds = time.perf_counter() - begin
        check = {str(n): float(zlib.crc32(text.encode())) for n, text in enumerate(texts)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Measured(
            amount=len(prompts) * HEAD, wall_seconds=seconds, cpu_seconds=time.process_time() - cpu,
            peak_rss_bytes=peak, check=check, computed_tokens=computed,
        )  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, connected("local", 2):
        folder = Path(name) / "model"
        save(language_model(random_llama("S", "float32")), folder)
        main("serve_replicas", cases, Turns(folder).measure, "ray", here=True)
