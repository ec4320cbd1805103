"""Two replicas on a local Ray cluster: prompts of 8 prefixes, routed as maypole does beside round-robin.

What is compared is not time but tokens: how many tokens of the prefixes the replicas computed rather than took from
their caches, which the answers' usage tells (the tails are everybody's own). The answers must be equal. With prompts
that share nothing the two must be equal too. S of 11M parameters; 8 prefixes of 512 tokens, 12 requests each, 4 at a
time.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from peers.random_llamas import SIZES, language_model, random_llama

from maypole.models.saving import save
from maypole.serve.replicas import ROUTER, open_front
from maypole.serve.running import in_thread
from maypole.serve.verbs import ServeOptions

TAIL = 16
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    vocabulary = SIZES["S"]["vocab_size"]
    works = {
        "8 prefixes of 512 tokens": lambda seed: prompts_of(8, 12, 512, TAIL, vocabulary, seed),
        "nothing shared": lambda seed: prompts_of(96, 1, 512, TAIL, vocabulary, seed),
    }
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        save(language_model(random_llama("S", "float32")), model)
        for title, make in works.items():
            for seed in range(arguments.seeds):
                sides: dict[str, tuple[list[str], int]] = {}
                for side, router in (("ours", ROUTER), ("round-robin", ROUND_ROBIN)):
                    with served(model, router) as url:
                        sides[side] = asked(url, make(seed))
                (ours, computed), (theirs, other) = sides["ours"], sides["round-robin"]
                cases.append({"case": title, "seed": seed, "ours": computed, "round-robin": other,
                              "ratio": computed / other, "equal": ours == theirs})  # fmt: skip
                print(cases[-1], file=sys.stderr)
    if arguments.json:
        print(json.dumps(cases, indent=1))
    wrong = [case for case in cases if not case["equal"]]
    sys.exit(1 if wrong or any(case["ratio"] > 0.6 for case in cases if case["case"].startswith("8")) else 0)


if __name__ == "__main__":
    main()
